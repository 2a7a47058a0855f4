package postgres

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgtype"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/mask"
	"chaperone.dev/chaperone/internal/sql"
)

// A statement is text of the client, prepared or about to run.
type statement struct {
	name   string // the client's
	target string // the target's
	text   string
	types  []uint32 // as the client gave them
	// ownTypes says that some of those are of the database's users.
	ownTypes bool

	offset int      // characters before it in its message
	count  int      // statements in its message; 0 is one
	fault  *refusal // it was tried to be read already

	// As last judged.
	judged   *sql.Statement
	analyzer Analyzer
	view     *view
	masks    []access.Mask
	writable []string

	forward *sql.Forward // nil for an empty statement
	detect  Detector     // nil when nothing is to be detected
	sent    string       // the text that the target has for it, or gets next
	basis   *basis       // nil unless the last judgement let it through

	describing bool // a Describe is staged or answered
	fields     []field
}

// forwardText is what the target gets.
func (st *statement) forwardText() string {
	if st.forward == nil {
		return ""
	}
	return st.forward.Text
}

// A portal is a statement with its values.
type portal struct {
	name      string
	target    string
	statement *statement
	params    []access.BoundParameter
	formats   []int16 // of the result
	bound     string  // the text that it was bound to
	types     *pgtype.Map

	describing bool
	fields     []field
	rows       int64          // already sent
	size       int            // of the values
	suspended  bool           // the last Execute stopped at its row count
	last       bool           // of a simple query
	call       *pgproto3.Bind // of a FunctionCall: the client awaits no columns and no tag
	granted    string         // digest of the grant that the suspended execution used
}

func (p *portal) field(i int) field {
	fields := p.fields
	if fields == nil && !p.statement.shapeless() {
		fields = p.statement.fields
	}
	if i >= len(fields) {
		return field{}
	}
	return fields[i]
}

func (p *portal) format(i int) int16 {
	switch {
	case len(p.formats) == 0:
		return 0
	case len(p.formats) == 1:
		return p.formats[0]
	case i < len(p.formats):
		return p.formats[i]
	}
	return 0
}

func (p *portal) textLike(i int) bool {
	return mayHoldText(p.field(i).oid)
}

func (p *portal) text(i int, cell []byte) string {
	return cellText(p.types, p.field(i).oid, p.format(i), cell)
}

// shapeless reports whether the columns of a statement can be others each time
// it runs.
func (st *statement) shapeless() bool { return st.judged != nil && runs(st.judged) }

func (p *portal) columns() []string {
	if kind := p.statement.judged.Kind; kind == sql.KindCopyOut || kind == sql.KindCopyIn {
		return []string{"COPY"}
	}
	fields := p.fields
	if fields == nil {
		fields = p.statement.fields
	}
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.name
	}
	return names
}

// A verdict is everything that was found out about one use of a statement.
type verdict struct {
	request  access.Request
	decision access.Decision
	asked    bool // policy was: decision is its answer
	empty    bool // there is no statement in it
	offset   int  // characters before it in its message
	refused  *refusal
}

// decided is the evidence of the decision.
func (v *verdict) decided(s *session) access.Event {
	e := s.event(access.Event{Decided: &access.Decided{Request: v.request, Decision: v.decision}})
	e.Request = v.request.ID
	return e
}

// judge analyzes, decides and masks st as it would run now with params. Afterwards
// st.forward is what the target would get. An error ends the session.
func (s *session) judge(ctx context.Context, st *statement, id string, params []access.BoundParameter, fresh bool) (*verdict, error) {
	if err := s.renewResource(); err != nil {
		return nil, err
	}
	if err := s.renewPrincipal(); err != nil {
		return nil, err
	}
	v := &verdict{offset: st.offset, request: access.Request{
		ID: id, Session: s.info.ID, Time: s.deps.Clock(), Principal: s.info.Principal, Resource: s.resource.Access,
	}}
	v.request.Action.SQL = &access.SQL{Text: st.text, Unknown: []string{"not analyzed"}}
	if r := s.analyze(ctx, st, fresh); r != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		r.denial.RequestID, r.asked, v.refused = id, st.text, r
		return v, nil
	}
	if st.judged.Kind == sql.KindEmpty {
		v.empty, st.forward = true, nil
		return v, nil
	}
	if runs(st.judged) {
		return v, s.judgeNamed(ctx, st, v, fresh)
	}
	return v, s.decide(ctx, st, v, params)
}

// decide asks policy about st, which was analyzed, and masks it.
func (s *session) decide(ctx context.Context, st *statement, v *verdict, params []access.BoundParameter) error {
	known := st.basis
	st.basis = nil
	action := st.judged.Action
	action.Text, action.Parameters, action.InTransaction = st.text, params, s.inTransaction()
	action.Statements = max(action.Statements, st.count)
	if len(action.SearchPath) == 0 {
		action.SearchPath = st.view.snapshot.SearchPath()
	}
	if st.ownTypes {
		action.ReadOnly = false
		action.Unknown = append(slices.Clone(action.Unknown), "a parameter has a type that is not one of PostgreSQL's own")
	}
	s.unsettled(&action, st.judged.Kind)
	v.request.Action.SQL = &action
	if err := s.decideForward(ctx, st, v); err != nil || v.refused != nil {
		return err
	}
	if v.refused = s.nullMask(st, v, params); v.refused != nil {
		return nil
	}
	if st.detect != nil && st.judged.Kind == sql.KindCopyOut {
		v.refused = s.judgeRefused(v, &sql.Refusal{Reason: access.Unsupported,
			Message: "the data of COPY is never altered, and " + v.decision.Rule() + " masks what it finds in results", Hint: "use SELECT"})
		return nil
	}
	s.deallocated(st)
	if st.judged.Instead != "" {
		st.forward = &sql.Forward{Text: st.judged.Instead}
	}
	if st.forward.Text != st.text {
		action.Forward = st.forward.Text
	}
	if v.decision.Effect == access.Allow && (st.judged.Kind == sql.KindQuery || st.judged.Kind == sql.KindChange) {
		if b := s.basisOf(st, v.decision.Revision); known == nil || *known != b {
			known = &b
		}
		st.basis = known
	}
	return nil
}

// renewResource takes the resource as the configuration has it now. A session
// does not outlive a change of its target.
func (s *session) renewResource() error {
	r, ok := s.deps.Resource(s.resource.Access.Name)
	if ok && r.Address == s.resource.Address && r.Database == s.resource.Database && r.User == s.resource.User && r.Profile == s.resource.Profile && maps.Equal(r.Claims, s.resource.Claims) &&
		slices.Equal(r.searchPath(), s.resource.searchPath()) {
		s.resource = r
		return nil
	}
	d := s.newDenial(access.SessionEnded, "the configuration of "+s.resource.Access.Name+" has changed")
	d.Hint = "connect again"
	return &fatalError{r: refuse(d, "resource changed or removed")}
}

// maxText bounds the text of a statement, which is recorded whole.
const maxText = 512 << 10

// analyze has st judged against the current catalog, unless it was already.
func (s *session) analyze(ctx context.Context, st *statement, fresh bool) *refusal {
	if st.fault != nil {
		return st.fault
	}
	if !utf8.ValidString(st.text) { // what is recorded must be what is forwarded
		r := refuse(s.newDenial(access.Unreadable, "the statement is not valid UTF-8"), "encoding")
		r.state = sqlstateEncoding
		return r
	}
	if len(st.text) > maxText {
		d := s.newDenial(access.LimitExceeded, fmt.Sprintf("the statement has %d bytes; the bound is %d", len(st.text), maxText))
		d.Hint = "pass long values as parameters, or split it"
		return refuse(d, "text")
	}
	if s.resource.Analyzer == nil {
		return s.unavailable("the gateway cannot read SQL now")
	}
	view, err := s.catalog.view(ctx, fresh)
	if err != nil {
		r := s.unavailable("the gateway cannot read the catalog of " + s.resource.Access.Name)
		r.cause = err.Error()
		return r
	}
	analyzer := s.resource.Analyzer // a new configuration brings a new one
	if st.judged != nil && st.analyzer == analyzer && st.view.snapshot.Version() == view.snapshot.Version() {
		return nil
	}
	judged, err := analyzer.Analyze(ctx, st.text, view.snapshot)
	if err != nil {
		r := s.unavailable("the gateway cannot read SQL now")
		r.cause = err.Error()
		return r
	}
	st.judged, st.analyzer, st.view, st.forward, st.masks = judged, analyzer, view, nil, nil
	return nil
}

// applyDecision turns a deny, or what the gateway cannot run whatever policy
// says, into a refusal.
func (s *session) applyDecision(ctx context.Context, st *statement, v *verdict) *refusal {
	if v.decision.Effect == access.Deny {
		// Where nothing but the lack of a rule or of knowledge denies, what is wrong with the
		// statement itself helps more.
		if r := cmp.Or(st.judged.Refusal, st.judged.Unbound); r != nil && (v.decision.Reason == access.NoRule || v.decision.Reason == access.Unreadable) {
			return s.judgeRefused(v, r)
		}
		r := refuse(access.DenialOf(v.request, v.decision), "policy")
		r.recorded = true // the Decided event is its evidence
		return r
	}
	if r := s.straighten(ctx, st, v); r != nil {
		return r
	}
	switch st.judged.Kind {
	case sql.KindQuery, sql.KindStraight, sql.KindChange, sql.KindTransaction, sql.KindCopyOut, sql.KindCopyIn, sql.KindReset, sql.KindNotify:
	case sql.KindListen:
		if r := s.checkChannel(st); r != nil {
			return r
		}
	case sql.KindDeclare, sql.KindClose, sql.KindPrepare, sql.KindDeallocate:
		if r := s.checkName(st, v); r != nil {
			return r
		}
	case sql.KindDiscard:
		if s.inTransaction() || s.dirty || st.count > 1 { // what was sent without Sync would end
			return plainError("25001", "DISCARD ALL cannot run inside a transaction block")
		}
	case sql.KindSetting:
		if set := st.judged.Setting; set != nil && !set.Show && strings.EqualFold(set.Name, "search_path") {
			return s.judgeRefused(v, &sql.Refusal{Reason: access.Unsupported,
				Message: "the gateway owns search_path", Hint: "write schema-qualified names"})
		}
	default:
		return s.judgeRefused(v, &sql.Refusal{Reason: access.Unsupported,
			Message: strings.TrimSpace(st.judged.Action.Command+" statements") + " are not supported"})
	}
	if r := s.keepsClaims(st, v); r != nil {
		return r
	}
	if !s.mayGoOn(v) {
		return refuse(s.outlived(v.request.ID, v.decision), "token expired")
	}
	if r := s.followPolicy(ctx, st, v); r != nil {
		return r
	}
	return s.writesMask(st, v)
}

// followPolicy notices a new revision: what is masked, and whether the injected
// role still lacks it.
func (s *session) followPolicy(ctx context.Context, st *statement, v *verdict) *refusal {
	if s.revision != v.decision.Revision || s.wallView != st.view {
		masks := s.deps.Decider.Masks(ctx, s.info.Principal, s.resource.Access)
		s.revision, s.wallView = v.decision.Revision, st.view
		s.masked, s.plain, s.walled = hasColumnMask(masks), s.hidesNothing(masks), s.wall(st.view, masks)
	}
	if s.walled == nil {
		return nil
	}
	r := *s.walled
	d := *r.denial
	d.RequestID, r.denial = v.request.ID, &d
	return &r
}

// judgeRefused is a refusal of the judge: after policy, which would allow it.
func (s *session) judgeRefused(v *verdict, r *sql.Refusal) *refusal {
	refused := refuse(&access.Denial{
		RequestID: v.request.ID, Reason: r.Reason, Rule: v.decision.Rule(), Message: r.Message, Hint: r.Hint,
		Resource: s.resource.Access.Name, Revision: v.decision.Revision,
	}, "judge")
	if r.SQLState != "" {
		refused.state = r.SQLState
	}
	if r.Position > 0 {
		refused.position = r.Position + v.offset
	}
	return refused
}

// mask rewrites st for the masks of the decision and builds the detector.
func (s *session) mask(ctx context.Context, st *statement, v *verdict) error {
	if err := s.maskedSince(v); err != nil {
		return err
	}
	masks, writable := v.decision.Obligations.Masks, v.decision.Obligations.WriteMasked
	if st.forward != nil && reflect.DeepEqual(st.masks, masks) && slices.Equal(st.writable, writable) {
		return nil
	}
	st.forward = nil
	detect, r := s.detector(v, masks)
	if r != nil {
		v.refused = r
		return nil
	}
	forward, err := s.resource.Analyzer.Mask(ctx, st.judged, st.view.snapshot, v.decision.Obligations)
	var refused *sql.Refusal
	switch {
	case errors.As(err, &refused):
		v.refused = s.judgeRefused(v, refused)
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil || forward == nil:
		v.refused = s.refuseUnavailable(v, "the gateway cannot read SQL now", err)
	default:
		st.forward, st.masks, st.writable, st.detect = forward, masks, writable, detect
	}
	return nil
}

// detector builds what the masks look for in results. Masks that mean nothing
// for SQL are refused: they would hide nothing.
func (s *session) detector(v *verdict, masks []access.Mask) (Detector, *refusal) {
	var detecting []access.Mask
	for _, m := range masks {
		switch {
		case m.Column != "":
		case len(m.Detect) > 0:
			detecting = append(detecting, m)
		default:
			return nil, s.refuseUnavailable(v, v.decision.Rule()+" has a mask that SQL results do not have", nil)
		}
	}
	if len(detecting) == 0 {
		return nil, nil
	}
	if s.deps.Detector == nil {
		return nil, s.refuseUnavailable(v, "the gateway cannot apply a mask of "+v.decision.Rule(), nil)
	}
	detect, err := s.deps.Detector(detecting)
	if err != nil || detect == nil {
		return nil, s.refuseUnavailable(v, "the gateway cannot apply a mask of "+v.decision.Rule(), err)
	}
	return detect, nil
}

// literalMask reports whether a string constant of text holds a mask. It goes
// by quotes alone: this guards against mistakes, not against intent.
func literalMask(text string) bool {
	for i, part := range strings.Split(text, "'") {
		if i%2 == 1 && mask.ContainsMask(part) {
			return true
		}
	}
	return false
}

// writesMask refuses a mask that comes back: stored, it would destroy the value
// that it stands for.
func (s *session) writesMask(st *statement, v *verdict) *refusal {
	if st.judged.Kind != sql.KindChange && st.judged.Kind != sql.KindNotify && len(st.judged.Action.Writes) == 0 || !s.masked {
		return nil
	}
	found := literalMask(st.text)
	for _, p := range v.request.Action.SQL.Parameters {
		value := []byte(p.Value)
		if p.Binary {
			value, _ = base64.StdEncoding.DecodeString(p.Value) // the session's own
		}
		found = found || p.HoldsMask || mask.ContainsMask(value)
	}
	if !found {
		return nil
	}
	return s.judgeRefused(v, &sql.Refusal{Reason: access.MaskedField, Message: "a value to be written holds a mask (" + mask.Mark + ")",
		Hint: "leave masked columns out of what you write"})
}

// nullMask refuses NULL for a masked column that shows as NULL, like writesMask.
func (s *session) nullMask(st *statement, v *verdict, params []access.BoundParameter) *refusal {
	if st.forward == nil {
		return nil
	}
	for _, n := range st.forward.NullMasks {
		if n <= len(params) && params[n-1].Null {
			return s.judgeRefused(v, &sql.Refusal{Reason: access.MaskedField, SQLState: "42501",
				Message: fmt.Sprintf("$%d is written to a column that is masked by NULL, so that it cannot be NULL", n), Hint: "leave the column out"})
		}
	}
	return nil
}

func (s *session) refuseUnavailable(v *verdict, message string, err error) *refusal {
	r := s.unavailable(message)
	r.denial.RequestID, r.denial.Rule, r.denial.Revision = v.request.ID, v.decision.Rule(), v.decision.Revision
	if err != nil {
		r.cause = err.Error()
	}
	return r
}

// inTransaction reports whether what runs now shares a transaction with what
// ran before: an explicit one, or a pipeline's implicit one.
func (s *session) inTransaction() bool { return s.status != statusIdle || s.ran }

// newDenial begins a denial of this session's.
func (s *session) newDenial(reason access.Reason, message string) *access.Denial {
	return &access.Denial{
		RequestID: access.NewRequestID(), Reason: reason, Message: message,
		Resource: s.resource.Access.Name, Revision: s.revision,
	}
}

// unavailable is the refusal for faults of the gateway or the target.
func (s *session) unavailable(message string) *refusal {
	d := s.newDenial(access.Unavailable, message)
	d.Hint = "try again in a moment; tell the operator the request id if it stays"
	return refuse(d, "")
}
