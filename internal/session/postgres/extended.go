package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgproto3"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/mask"
	"chaperone.dev/chaperone/internal/sql"
)

// Bounds of what a client may keep prepared.
const (
	maxStatements    = 1000
	maxPortals       = 200
	maxStatementText = 16 << 20
	maxPortalValues  = 16 << 20
)

// parse prepares a statement: it is judged now, so that a denial comes early,
// and again whenever it is bound and run.
func (s *session) parse(ctx context.Context, body []byte) error {
	var msg pgproto3.Parse
	if err := msg.Decode(body); err != nil {
		return s.inboxFault(ctx, malformed("Parse"))
	}
	if msg.Name != "" && (s.statements[msg.Name] != nil || s.prepared[msg.Name] != nil) {
		return s.refuse(ctx, plainError(sqlstateDupStatement, "prepared statement %q already exists", access.Printable(msg.Name, 100)), nil)
	}
	if s.tooManyStatements(len(msg.Query)) {
		d := s.newDenial(access.LimitExceeded, "too many prepared statements")
		d.Hint = "close some of them"
		return s.refuse(ctx, refuse(d, "prepared statements"), nil)
	}
	st := &statement{name: msg.Name, text: msg.Query, types: msg.ParameterOIDs}
	if r := s.parameterTypes(st.types); r != nil {
		if !s.open(ctx) {
			return s.refuse(ctx, r, nil)
		}
		st.ownTypes = true
	}
	v, err := s.judgeEarly(ctx, st, nil)
	if err != nil {
		return err
	}
	if v.refused != nil {
		return s.refuseVerdict(ctx, v, nil)
	}
	if msg.Name == "" {
		s.forget("")
	}
	s.statements[msg.Name] = st
	s.textBytes += len(st.text)
	parse := s.prepareStep(st)
	parse.undo = func() { s.forgetExactly(st) }
	if !v.empty {
		parse.before = []access.Event{v.decided(s)}
	}
	return s.stage(ctx, parse, s.parseMessage(st))
}

// firstUserOID is FirstNormalObjectId: types from here on are not PostgreSQL's
// own.
const firstUserOID = 16384

// parameterTypes refuses types of the database's users for parameters: they
// would choose functions and operators that the judge has not seen. Where
// nothing is hidden they only make the statement one that is not known.
func (s *session) parameterTypes(types []uint32) *refusal {
	for i, oid := range types {
		if oid >= firstUserOID {
			d := s.newDenial(access.Unsupported, fmt.Sprintf("the type of parameter $%d is not one of PostgreSQL's own", i+1))
			d.Hint = "leave the type to the database"
			return refuse(d, "parameter type")
		}
	}
	return nil
}

// prepareStep is the step that prepares st at the target, under a name of the
// gateway's.
func (s *session) prepareStep(st *statement) step {
	st.target, st.sent = "", st.forwardText()
	st.describing, st.fields = false, nil
	if st.name != "" {
		s.names++
		st.target = fmt.Sprintf("chaperone_s%d", s.names)
	}
	return step{kind: stepParse, statement: st}
}

func (s *session) parseMessage(st *statement) *pgproto3.Parse {
	return &pgproto3.Parse{Name: st.target, Query: st.sent, ParameterOIDs: st.types}
}

// forget drops a prepared statement of the client's.
func (s *session) forget(name string) *statement {
	st := s.statements[name]
	if st != nil {
		s.textBytes -= len(st.text)
		delete(s.statements, name)
	}
	return st
}

func (s *session) forgetExactly(st *statement) {
	if s.statements[st.name] == st {
		s.forget(st.name)
	}
}

// bind gives a statement its values. What rules and catalog say now is what the
// target plans: a statement that they changed is prepared anew first.
func (s *session) bind(ctx context.Context, body []byte) error {
	var msg pgproto3.Bind
	if err := msg.Decode(body); err != nil {
		return s.inboxFault(ctx, malformed("Bind"))
	}
	st := s.statements[msg.PreparedStatement]
	if st == nil {
		return s.refuse(ctx, s.noStatement(msg.PreparedStatement), nil)
	}
	if _, exists := s.portals[msg.DestinationPortal]; exists && msg.DestinationPortal != "" {
		return s.refuse(ctx, plainError(sqlstateDupPortal, "portal %q already exists", access.Printable(msg.DestinationPortal, 100)), nil)
	}
	held := len(body)
	for _, p := range s.portals {
		held += p.size
	}
	if len(s.portals) >= maxPortals || held > maxPortalValues {
		return s.refuse(ctx, refuse(s.newDenial(access.LimitExceeded, "too many open portals"), "portals"), nil)
	}
	params, r := boundParameters(&msg, st.types)
	if r != nil {
		return s.refuse(ctx, r, nil)
	}
	if recordedSize(params) > maxRecordedBind {
		d := s.newDenial(access.LimitExceeded, fmt.Sprintf("%d values are more than can be recorded of one statement", len(params)))
		d.Hint = "pass an array, as in = ANY ($1), use COPY, or split the statement"
		return s.refuse(ctx, refuse(d, "values"), belongsTo(st, nil))
	}
	if holds, err := s.stillHolds(ctx, st); err != nil {
		return err
	} else if !holds {
		v, err := s.judgeEarly(ctx, st, params)
		if err != nil {
			return err
		}
		if v.refused != nil {
			return s.refuseVerdict(ctx, v, belongsTo(st, nil))
		}
		if err := s.renewStatement(ctx, st, v); err != nil {
			return err
		}
	}
	p := &portal{name: msg.DestinationPortal, statement: st, params: params, formats: msg.ResultFormatCodes, bound: st.sent, types: s.types, size: len(body)}
	if p.name != "" {
		s.names++
		p.target = fmt.Sprintf("chaperone_p%d", s.names)
	}
	s.portals[p.name] = p
	undo := func() {
		if s.portals[p.name] == p {
			delete(s.portals, p.name)
		}
	}
	msg.DestinationPortal, msg.PreparedStatement = p.target, st.target
	return s.stage(ctx, step{kind: stepBind, statement: st, portal: p, undo: undo}, &msg)
}

// stillHolds reports whether the target has st as it was last judged, and nothing
// has changed that was judged by: then Bind has nothing to find out. Execute
// judges it with its values, always.
func (s *session) stillHolds(ctx context.Context, st *statement) (bool, error) {
	if st.basis == nil {
		return false, nil
	}
	if err := s.renewResource(); err != nil {
		return false, err
	}
	if err := s.renewPrincipal(); err != nil {
		return false, err
	}
	return s.analyze(ctx, st, false) == nil && st.forward != nil && st.sent == st.forward.Text && len(st.forward.NullMasks) == 0 &&
		*st.basis == s.basisOf(st, s.deps.Decider.Revision()), nil
}

// A basis is what statements are judged by, besides their values.
type basis struct {
	view      *view
	analyzer  Analyzer
	revision  string
	token     string
	unsettled string
}

func (s *session) basisOf(st *statement, revision string) basis {
	return basis{st.view, st.analyzer, revision, s.info.Principal.Token.ID, s.unsettledBy}
}

// renewStatement prepares st anew at the target when it is no longer what the
// target has.
func (s *session) renewStatement(ctx context.Context, st *statement, v *verdict) error {
	if st.sent == st.forwardText() {
		return nil
	}
	if old := st.target; old != "" {
		err := s.stage(ctx, step{kind: stepClose, quiet: true}, &pgproto3.Close{ObjectType: 'S', Name: old})
		if err != nil {
			return err
		}
	}
	renewed := s.prepareStep(st)
	renewed.quiet, renewed.before = true, []access.Event{v.decided(s)}
	renewed.undo = func() { s.forgetExactly(st) }
	return s.stage(ctx, renewed, s.parseMessage(st))
}

// What is decided about and recorded of the values of one Bind: a longer value
// by its beginning and its digest, which binds a grant to all of it.
const (
	maxRecordedValue  = 64 << 10
	maxRecordedValues = 256 << 10 // together
	maxRecordedBind   = 1 << 20   // with all that the recording has beside them
	beginning         = 100
)

// recordedSize is about what the recording needs for values.
func recordedSize(params []access.BoundParameter) (n int) {
	for _, p := range params {
		n += len(p.Value) + len(p.SHA256) + 24
	}
	return n
}

// boundParameters are the values of a Bind in the words of decisions.
func boundParameters(msg *pgproto3.Bind, types []uint32) ([]access.BoundParameter, *refusal) {
	formats := msg.ParameterFormatCodes
	if len(formats) > 1 && len(formats) != len(msg.Parameters) {
		return nil, plainError(sqlstateProtocol, "bind message has %d parameter formats but %d parameters", len(formats), len(msg.Parameters))
	}
	params, room := make([]access.BoundParameter, len(msg.Parameters)), maxRecordedValues
	for i, value := range msg.Parameters {
		var format int16
		switch {
		case len(formats) == 1:
			format = formats[0]
		case len(formats) > 1:
			format = formats[i]
		}
		if format != 0 && format != 1 {
			return nil, plainError(sqlstateProtocol, "unsupported format code: %d", format)
		}
		if i < len(types) {
			params[i].Type = types[i]
		}
		kept := value
		if len(value) > min(room, maxRecordedValue) && len(value) > beginning {
			kept = value[:beginning]
			for format == 0 && len(kept) > beginning-utf8.UTFMax && !utf8.Valid(kept) {
				kept = kept[:len(kept)-1]
			}
			sum := sha256.Sum256(value)
			params[i].Size, params[i].SHA256, params[i].HoldsMask = int64(len(value)), hex.EncodeToString(sum[:]), mask.ContainsMask(value)
		}
		room -= len(kept)
		setValue(&params[i], kept, value == nil, format == 1)
	}
	return params, nil
}

// describe passes the shape of a statement or portal on. It shows types and
// names, never values.
func (s *session) describe(ctx context.Context, body []byte) error {
	var msg pgproto3.Describe
	if err := msg.Decode(body); err != nil {
		return s.inboxFault(ctx, malformed("Describe"))
	}
	if msg.ObjectType == 'S' {
		st := s.statements[msg.Name]
		if st == nil {
			return s.refuse(ctx, s.noStatement(msg.Name), nil)
		}
		st.describing, msg.Name = true, st.target
		return s.stage(ctx, step{kind: stepDescribeStatement, statement: st, undo: func() { st.describing = false }}, &msg)
	}
	p := s.portals[msg.Name]
	if p == nil && s.cursors[msg.Name] != nil { // an SQL cursor is a portal of its name
		return s.stage(ctx, step{kind: stepDescribePortal}, &msg)
	}
	if p == nil {
		return s.refuse(ctx, s.noPortal(msg.Name), nil)
	}
	p.describing, msg.Name = true, p.target
	return s.stage(ctx, step{kind: stepDescribePortal, statement: p.statement, portal: p, undo: func() { p.describing = false }}, &msg)
}

// rowsDescribed learns the shape of a result, whoever asked for it.
func (s *session) rowsDescribed(st step, typ byte, body []byte) error {
	fields := []field{}
	if typ == 'T' {
		var err error
		if fields, err = readFields(body); err != nil {
			return lostTarget(s.unavailable("the target broke the protocol"), err)
		}
	}
	if st.portal != nil {
		st.portal.fields = fields
	} else if st.statement != nil {
		st.statement.fields = fields
	}
	if !st.quiet && !(st.simple && typ == 'n') && (st.portal == nil || st.portal.call == nil) {
		s.out = appendFrame(s.out, typ, body)
	}
	return nil
}

// execute runs a portal: decided, held, recorded and limited each time anew,
// with its own values.
func (s *session) execute(ctx context.Context, body []byte) error {
	var msg pgproto3.Execute
	if err := msg.Decode(body); err != nil {
		return s.inboxFault(ctx, malformed("Execute"))
	}
	p := s.portals[msg.Portal]
	if p == nil {
		return s.refuse(ctx, s.noPortal(msg.Portal), nil)
	}
	if s.mustDrain(stepExecute) { // the answers decide whether this one counts
		if err := s.drain(ctx); err != nil || s.discarding {
			return err
		}
	}
	return s.runPortal(ctx, p, msg.MaxRows, false)
}

// needsShape reports whether the recording and the detectors must learn the
// columns of the result first.
func (p *portal) needsShape() bool {
	if p.describing || p.fields != nil || !p.statement.shapeless() && (p.statement.describing || p.statement.fields != nil) {
		return false
	}
	judged := p.statement.judged
	return judged.ReturnsRows || judged.Kind == sql.KindQuery || judged.Kind == sql.KindSetting || judged.Kind == sql.KindStraight
}

// closeNamed closes a statement or portal. Closing what is not there is no
// error.
func (s *session) closeNamed(ctx context.Context, body []byte) error {
	var msg pgproto3.Close
	if err := msg.Decode(body); err != nil {
		return s.inboxFault(ctx, malformed("Close"))
	}
	closing := step{kind: stepClose}
	if msg.ObjectType == 'S' {
		if st := s.forget(msg.Name); st != nil {
			closing.undo = func() {
				if s.statements[st.name] == nil {
					s.statements[st.name] = st
					s.textBytes += len(st.text)
				}
			}
			msg.Name = st.target
			return s.stage(ctx, closing, &msg)
		}
	} else if p := s.portals[msg.Name]; p != nil {
		delete(s.portals, p.name)
		closing.undo = func() {
			if s.portals[p.name] == nil {
				s.portals[p.name] = p
			}
		}
		msg.Name = p.target
		return s.stage(ctx, closing, &msg)
	} else if c := s.cursors[msg.Name]; c != nil {
		delete(s.cursors, msg.Name)
		name := msg.Name
		closing.undo = func() { s.cursors[name] = c }
		return s.stage(ctx, closing, &msg)
	}
	return s.stage(ctx, step{kind: stepLocal, local: appendFrame(nil, '3', nil)}, nil)
}

func (s *session) noStatement(name string) *refusal {
	if s.prepared[name] != nil {
		return s.mixed("the statement "+strconv.Quote(access.Printable(name, 100))+" was prepared in SQL, and the protocol cannot bind or describe it", "run it with EXECUTE, or prepare it with Parse")
	}
	if name == "" {
		return plainError(sqlstateNoStatement, "unnamed prepared statement does not exist")
	}
	return plainError(sqlstateNoStatement, "prepared statement %q does not exist", access.Printable(name, 100))
}

func (s *session) noPortal(name string) *refusal {
	if s.cursors[name] != nil {
		return s.mixed("the cursor "+strconv.Quote(access.Printable(name, 100))+" was declared in SQL, and Execute cannot run it", "use FETCH")
	}
	return plainError(sqlstateNoPortal, "portal %q does not exist", access.Printable(name, 100))
}

// belongsTo selects the steps that exist only for a statement, or a portal of
// it.
func belongsTo(st *statement, p *portal) func(step) bool {
	return func(other step) bool {
		return other.kind != stepExecute && (other.statement == st || p != nil && other.portal == p)
	}
}
