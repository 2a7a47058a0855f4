package sql

import "strings"

// A statement that the judge cannot bind, or whose form it does not handle, can
// still run as it came where nothing is hidden: its Straight says how. What is
// KindRefused there runs nowhere: files and programs of the database's server,
// and the settings that say how text is read and with whose rights it runs.

// AsItCame is st as a session runs it that forwards the client's own text: of a
// Kind, without Refusal, and with the reason in Unbound. It is nil for what is
// never run so. Its action has something unknown always.
func (st *Statement) AsItCame() *Statement {
	if st.Refusal == nil || st.Straight == KindRefused || len(st.Parts) > 1 {
		return nil
	}
	free := *st
	free.Kind, free.Refusal, free.Unbound, free.body = st.Straight, nil, st.Refusal, nil
	free.Action.ReadOnly, free.Instead = false, ""
	if len(free.Action.Unknown) == 0 {
		free.Action.Unknown = []string{st.Refusal.Message}
	}
	return &free
}

// AsUnknown is a FETCH or EXECUTE of what nobody is known to have made, as it is
// refused where something is masked.
func (st *Statement) AsUnknown() *Statement {
	unknown := *st
	unknown.Straight, unknown.Kind = KindStraight, KindRefused
	unknown.Refusal = unsupported(st.Action.Command+" of a name that the gateway has not seen made", "Declare the cursor, or prepare the statement, in this session.")
	return &unknown
}

// Unsettles reports whether names can mean something else after a statement that
// ran as it came: it can make what hides them, or move the path that finds them.
func (st *Statement) Unsettles() bool { return st.Kind == KindStraight }

// everOwned are the settings that no client changes, wherever it is: the judge
// reads text by the first, and the others are somebody else's rights.
func everOwned(name string) bool {
	switch strings.ToLower(name) {
	case "standard_conforming_strings", "client_encoding", "role", "session_authorization":
		return true
	}
	return false
}

// never is st refused for good.
func (st *Statement) never(r *Refusal) *Statement {
	st.refused(r).Straight = KindRefused
	return st
}
