package sql

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	pg "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/proto"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/sql/catalog"
)

// settable are the settings that a client may change, with what a value must
// be. The gateway owns every other one: many change how text is read, which
// names mean what, or which rows are seen.
var settable = map[string]func(value string) (time.Duration, error){
	"application_name":                    plainText,
	"statement_timeout":                   positiveTime,
	"lock_timeout":                        positiveTime,
	"idle_in_transaction_session_timeout": positiveTime,
	"extra_float_digits":                  digits,
	"client_min_messages":                 oneOf("debug5", "debug4", "debug3", "debug2", "debug1", "log", "notice", "warning", "error"),
	"datestyle":                           dateStyle,
	"timezone":                            plainText,
	"client_encoding":                     oneOf("utf8", "utf-8", "unicode"),
	"standard_conforming_strings":         oneOf("on", "true", "1", "yes"),
	"intervalstyle":                       oneOf("postgres"),
	"default_transaction_isolation":       oneOf("read committed", "read uncommitted", "repeatable read", "serializable"),
	"default_transaction_read_only":       oneOf("on", "off", "true", "false", "yes", "no", "1", "0"),
	"default_transaction_deferrable":      oneOf("on", "off", "true", "false", "yes", "no", "1", "0"),
}

// showable are the settings besides those that SHOW may read.
const showable = " server_version server_version_num server_encoding transaction_isolation transaction_read_only transaction_deferrable " +
	"search_path is_superuser session_authorization integer_datetimes max_identifier_length lc_collate lc_ctype lc_messages " +
	"lc_monetary lc_numeric lc_time in_hot_standby max_index_keys block_size role "

// CheckSetting reports why a client may not give a setting a value, in whatever
// way it does: nil is what SET would take. The name's case does not matter.
func CheckSetting(name, value string) error {
	check := settable[strings.ToLower(name)]
	if check == nil {
		return errors.New("it is not one that a client may set")
	}
	_, err := check(value)
	return err
}

const settingHint = "These can be set: application_name, statement_timeout, lock_timeout, idle_in_transaction_session_timeout, " +
	"extra_float_digits, client_min_messages, datestyle (ISO), timezone, client_encoding (UTF8) and default_transaction_…."

func sessionStatement(text string, cat *catalog.Snapshot, kind Kind, command string) *Statement {
	return &Statement{Text: text, Kind: kind, Action: access.SQL{
		Text: text, Command: command, ReadOnly: true, Session: true, Statements: 1, SearchPath: cat.SearchPath(),
	}}
}

// refused turns a statement that was judged into a refused one.
func (st *Statement) refused(r *Refusal) *Statement {
	if st.Refusal == nil {
		st.Straight = straightKind(st.Kind)
	}
	st.Kind, st.Refusal, st.Action.ReadOnly = KindRefused, r, false
	st.Action.Unknown = append(st.Action.Unknown, r.Message)
	return st
}

// straightKind is how a statement of kind k runs as it came.
func straightKind(k Kind) Kind {
	switch k {
	case KindRefused, KindDefinition, KindSetting, KindTransaction, KindExecute, KindFetch, KindReset:
		return KindStraight
	}
	return k
}

func judgeSet(text string, cat *catalog.Snapshot, s *pg.VariableSetStmt) *Statement {
	command := "SET"
	if s.GetKind() == pg.VariableSetKind_VAR_RESET || s.GetKind() == pg.VariableSetKind_VAR_RESET_ALL {
		command = "RESET"
	}
	st := sessionStatement(text, cat, KindSetting, command)
	name := strings.ToLower(s.GetName())
	setting := &Setting{Name: name, Local: s.GetIsLocal()}
	switch s.GetKind() {
	case pg.VariableSetKind_VAR_RESET_ALL: // to what went out with the startup message, where the gateway's own are
		st.Kind = KindReset
		return st
	case pg.VariableSetKind_VAR_SET_MULTI:
		if s.GetName() == "TRANSACTION" && transactionModes(s.GetArgs()) {
			st.Kind, st.Transaction, st.Action.Command = KindTransaction, TxSet, "SET TRANSACTION"
			return st
		}
		if s.GetName() == "SESSION CHARACTERISTICS" && transactionModes(s.GetArgs()) {
			st.Kind, st.Transaction, st.Action.Command = KindTransaction, TxSet, "SET SESSION CHARACTERISTICS"
			return st
		}
		return st.refused(unsupported("SET "+s.GetName(), "Set isolation level and access mode with BEGIN or SET TRANSACTION."))
	case pg.VariableSetKind_VAR_RESET, pg.VariableSetKind_VAR_SET_DEFAULT:
		setting.Reset = true
		if name == "session_authorization" && !setting.Local { // it is the default always; the statement would undo a role that came with it
			st.Kind, st.Instead = KindReset, command+" client_encoding"
			if command == "SET" {
				st.Instead += " = 'UTF8'"
			}
			return st
		}
	case pg.VariableSetKind_VAR_SET_VALUE:
		value, ok := settingValue(s.GetArgs())
		if !ok && everOwned(name) {
			return st.never(unsupported("SET "+name+" to a value of this kind", "Write it as a string."))
		}
		if !ok {
			return st.refused(unsupported("SET "+name+" to a value of this kind", "Write it as a string."))
		}
		setting.Value = value
	default: // SET … FROM CURRENT
		return st.refused(unsupported(command+" of this kind", "Name the setting. "+settingHint))
	}
	check := settable[name]
	switch {
	case check == nil && everOwned(name):
		return st.never(unsupported(command+" "+name, settingHint))
	case check == nil:
		return st.refused(unsupported(command+" "+name, settingHint))
	}
	if !setting.Reset {
		d, err := check(setting.Value)
		if err != nil && everOwned(name) {
			return st.never(unsupported(fmt.Sprintf("SET %s: %v", name, err), settingHint))
		}
		if err != nil {
			return st.refused(unsupported(fmt.Sprintf("SET %s: %v", name, err), settingHint))
		}
		setting.Duration = d
	}
	st.Setting = setting
	return st
}

// judgeDiscard judges DISCARD: a session has nothing that another needs.
func judgeDiscard(text string, cat *catalog.Snapshot, d *pg.DiscardStmt) *Statement {
	switch d.GetTarget() {
	case pg.DiscardMode_DISCARD_ALL:
		st := sessionStatement(text, cat, KindDiscard, "DISCARD")
		st.Instead = "DEALLOCATE ALL"
		return st
	case pg.DiscardMode_DISCARD_PLANS, pg.DiscardMode_DISCARD_SEQUENCES, pg.DiscardMode_DISCARD_TEMP:
		return sessionStatement(text, cat, KindReset, "DISCARD")
	}
	return sessionStatement(text, cat, KindRefused, "DISCARD").refused(unsupported("DISCARD of this kind", "DISCARD ALL is known."))
}

// judgeUnlock knows the one call that pools make when a connection is given
// back, written by itself: it lets go of what the session holds and tells
// nothing. Nil is any other statement.
func judgeUnlock(text string, cat *catalog.Snapshot, s *pg.SelectStmt) *Statement {
	targets := s.GetTargetList()
	if len(targets) != 1 {
		return nil
	}
	target := targets[0].GetResTarget()
	call := target.GetVal().GetFuncCall()
	names := call.GetFuncname()
	if len(names) == 2 && names[0].GetString_().GetSval() == "pg_catalog" {
		names = names[1:]
	}
	if len(names) != 1 || names[0].GetString_().GetSval() != unlockAll {
		return nil
	}
	plain := &pg.SelectStmt{LimitOption: s.GetLimitOption(), Op: s.GetOp(), TargetList: []*pg.Node{{Node: &pg.Node_ResTarget{ResTarget: &pg.ResTarget{
		Location: target.GetLocation(), Val: &pg.Node{Node: &pg.Node_FuncCall{FuncCall: &pg.FuncCall{
			Funcname: call.GetFuncname(), Funcformat: call.GetFuncformat(), Location: call.GetLocation()}}}}}}}}
	if !proto.Equal(plain, s) {
		return nil
	}
	st := sessionStatement(text, cat, KindReset, "SELECT")
	st.ReturnsRows, st.Instead = true, "SELECT pg_catalog."+unlockAll+"()"
	return st
}

const unlockAll = "pg_advisory_unlock_all"

// judgeChannel judges LISTEN and NOTIFY, which carry words between sessions past
// every table: neither is read-only, nor about the session alone.
func judgeChannel(text string, cat *catalog.Snapshot, kind Kind, command, channel string) *Statement {
	return &Statement{Text: text, Kind: kind, Name: channel, Action: access.SQL{
		Text: text, Command: command, Channels: []string{channel}, Statements: 1, SearchPath: cat.SearchPath(),
	}}
}

// settingValue joins the constants of SET as the server does.
func settingValue(args []*pg.Node) (string, bool) {
	var parts []string
	for _, n := range args {
		c := n.GetAConst()
		switch {
		case c.GetSval() != nil:
			parts = append(parts, c.GetSval().GetSval())
		case c.GetIval() != nil:
			parts = append(parts, strconv.Itoa(int(c.GetIval().GetIval())))
		case c != nil && c.GetFval() != nil:
			parts = append(parts, c.GetFval().GetFval())
		default:
			return "", false
		}
	}
	return strings.Join(parts, ", "), len(parts) > 0
}

func judgeShow(text string, cat *catalog.Snapshot, s *pg.VariableShowStmt) *Statement {
	st := sessionStatement(text, cat, KindSetting, "SHOW")
	name := strings.ToLower(s.GetName())
	if settable[name] == nil && !strings.Contains(showable, " "+name+" ") {
		return st.refused(unsupported("SHOW "+name, "Settings of the client's session can be shown, and the server's version and encoding."))
	}
	st.ReturnsRows, st.Setting = true, &Setting{Name: name, Show: true}
	return st
}

func plainText(value string) (time.Duration, error) {
	if len(value) > 200 || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return 0, fmt.Errorf("the value must be a short line of text")
	}
	return 0, nil
}

func oneOf(values ...string) func(string) (time.Duration, error) {
	return func(value string) (time.Duration, error) {
		if !slices.Contains(values, strings.ToLower(value)) {
			return 0, fmt.Errorf("the value must be one of %s", strings.Join(values, ", "))
		}
		return 0, nil
	}
}

func digits(value string) (time.Duration, error) {
	if n, err := strconv.Atoi(value); err != nil || n < -15 || n > 3 {
		return 0, fmt.Errorf("the value must be between -15 and 3")
	}
	return 0, nil
}

// dateStyle keeps the output ISO, which every driver reads.
func dateStyle(value string) (time.Duration, error) {
	iso := false
	for part := range strings.SplitSeq(value, ",") {
		switch strings.ToLower(strings.TrimSpace(part)) {
		case "iso":
			iso = true
		case "mdy", "us":
		default:
			return 0, fmt.Errorf("the value must be ISO or ISO, MDY")
		}
	}
	if !iso {
		return 0, fmt.Errorf("the value must be ISO or ISO, MDY")
	}
	return 0, nil
}

var timeValue = regexp.MustCompile(`^\s*([0-9]{1,12})\s*(us|ms|s|min|h|d|)\s*$`)

// positiveTime reads a time as the server does, milliseconds without a unit.
// None is not a time: it would lift the limit.
func positiveTime(value string) (time.Duration, error) {
	m := timeValue.FindStringSubmatch(value)
	if m == nil {
		return 0, fmt.Errorf("the value must be a time, such as 5000 or 5s")
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("the value must be a time, such as 5000 or 5s")
	}
	unit := map[string]time.Duration{
		"us": time.Microsecond, "ms": time.Millisecond, "": time.Millisecond, "s": time.Second, "min": time.Minute, "h": time.Hour, "d": 24 * time.Hour,
	}[m[2]]
	if limit := int64((1<<31 - 1) * time.Millisecond / unit); n > limit || n == 0 || time.Duration(n)*unit < time.Millisecond {
		return 0, fmt.Errorf("the value must be more than 0 and less than 25 days")
	}
	return time.Duration(n) * unit, nil
}

// judgeTransaction judges BEGIN, COMMIT and their kin.
func judgeTransaction(text string, cat *catalog.Snapshot, s *pg.TransactionStmt) *Statement {
	kinds := map[pg.TransactionStmtKind]struct {
		command TransactionCommand
		name    string
	}{
		pg.TransactionStmtKind_TRANS_STMT_BEGIN:       {TxBegin, "BEGIN"},
		pg.TransactionStmtKind_TRANS_STMT_START:       {TxBegin, "START TRANSACTION"},
		pg.TransactionStmtKind_TRANS_STMT_COMMIT:      {TxCommit, "COMMIT"},
		pg.TransactionStmtKind_TRANS_STMT_ROLLBACK:    {TxRollback, "ROLLBACK"},
		pg.TransactionStmtKind_TRANS_STMT_SAVEPOINT:   {TxSavepoint, "SAVEPOINT"},
		pg.TransactionStmtKind_TRANS_STMT_RELEASE:     {TxRelease, "RELEASE"},
		pg.TransactionStmtKind_TRANS_STMT_ROLLBACK_TO: {TxRollbackTo, "ROLLBACK TO SAVEPOINT"},
	}
	k, ok := kinds[s.GetKind()]
	if !ok {
		st := sessionStatement(text, cat, KindTransaction, "PREPARE TRANSACTION")
		return st.refused(unsupported("two-phase commit", "Use COMMIT."))
	}
	st := sessionStatement(text, cat, KindTransaction, k.name)
	st.Transaction = k.command
	if !transactionModes(s.GetOptions()) {
		return st.refused(unsupported(k.name+" with these options", "Use an isolation level, READ ONLY, READ WRITE or DEFERRABLE."))
	}
	return st
}

// transactionModes reports whether every mode has a rule. A snapshot exported
// by another session is not one.
func transactionModes(modes []*pg.Node) bool {
	for _, n := range modes {
		switch n.GetDefElem().GetDefname() {
		case "transaction_isolation", "transaction_read_only", "transaction_deferrable":
		default:
			return false
		}
	}
	return true
}
