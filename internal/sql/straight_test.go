package sql

import (
	"testing"

	"chaperone.dev/chaperone/internal/access"
)

// How a refused statement runs as it came, and which never does.
func TestAsItCame(t *testing.T) {
	t.Parallel()
	a, cat := newTestAnalyzer(t), testCatalog(t)
	for text, want := range map[string]Kind{
		"select 1 from nowhere":                  KindQuery,
		"select lo_create(0)":                    KindQuery,
		"insert into nowhere values (1)":         KindChange,
		"copy nowhere to stdout":                 KindCopyOut,
		"copy nowhere from stdin":                KindCopyIn,
		"declare c cursor for table nowhere":     KindDeclare,
		"prepare p as table nowhere":             KindPrepare,
		"execute p (1 + 1)":                      KindStraight,
		"create table t (a int)":                 KindStraight,
		"do 'begin end'":                         KindStraight,
		"set search_path = x":                    KindStraight,
		"show work_mem":                          KindStraight,
		"prepare transaction 'x'":                KindStraight,
		"selct 1":                                KindStraight,
		"select 1; select 2":                     KindRefused,
		"copy orders to '/tmp/x'":                KindRefused,
		"copy nowhere from program 'echo'":       KindRefused,
		"set standard_conforming_strings = off":  KindRefused,
		"set client_encoding = 'latin1'":         KindRefused,
		"set role postgres":                      KindRefused,
		"reset role":                             KindRefused,
		"set local session authorization 'none'": KindRefused,
	} {
		st := judge(t, a, cat, text)
		if st.Refusal == nil {
			t.Errorf("%s: not refused", text)
			continue
		}
		free, got := st.AsItCame(), KindRefused
		if free != nil {
			got = free.Kind
			if free.Refusal != nil || free.Unbound == nil || len(free.Action.Unknown) == 0 || free.Action.ReadOnly {
				t.Errorf("%s: %+v", text, free)
			}
			_, err := a.Mask(t.Context(), free, cat, access.Obligations{Masks: masksOf("public.customers.ssn")})
			if err == nil {
				t.Errorf("%s: it is served beside a mask", text)
			}
		}
		if got != want {
			t.Errorf("%s: kind %d, want %d", text, got, want)
		}
	}
	if st := judge(t, a, cat, "select 1"); st.AsItCame() != nil {
		t.Error("what is served has no need of it")
	}
}
