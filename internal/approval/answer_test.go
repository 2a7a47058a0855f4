package approval

import (
	"errors"
	"strings"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// Who may review what. Each case is the good reviewer, changed.
func TestReviewerRules(t *testing.T) {
	t.Parallel()
	good := func() access.Principal { return reviewer("bob") }
	tests := map[string]struct {
		reviewer func() access.Principal
		ask      func(a *access.Ask)
		want     error
	}{
		"good": {reviewer: good},
		"one of several groups": {reviewer: good, ask: func(a *access.Ask) {
			a.Decision.Obligations.Approval.Groups = []string{"none", "staff"}
		}},
		"another group": {reviewer: good, want: ErrNotReviewer, ask: func(a *access.Ask) {
			a.Decision.Obligations.Approval.Groups = []string{"owners"}
		}},
		"group by case":  {reviewer: func() access.Principal { r := good(); r.Groups = []string{"Senior"}; return r }, want: ErrNotReviewer},
		"no group":       {reviewer: func() access.Principal { r := good(); r.Groups = nil; return r }, want: ErrNotReviewer},
		"no user":        {reviewer: func() access.Principal { r := good(); r.User = ""; return r }, want: ErrNotReviewer},
		"no subject":     {reviewer: func() access.Principal { r := good(); r.Subject = ""; return r }, want: ErrNotReviewer},
		"requester":      {reviewer: func() access.Principal { r := requester; r.Chain = nil; return r }, want: ErrOwnRequest},
		"same user":      {reviewer: func() access.Principal { r := good(); r.User = "alice@example.com"; return r }, want: ErrOwnRequest},
		"user by case":   {reviewer: func() access.Principal { r := good(); r.User = " Alice@EXAMPLE.com"; return r }, want: ErrOwnRequest},
		"user by fold":   {reviewer: func() access.Principal { r := good(); r.User = "alice@example.com"; return r }, ask: func(a *access.Ask) { a.Request.Principal.User = "ALICE@E\u212AAMPLE.COM" }},
		"kelvin sign":    {reviewer: func() access.Principal { r := good(); r.User = "k@example.com"; return r }, want: ErrOwnRequest, ask: func(a *access.Ask) { a.Request.Principal.User = "\u212A@example.com" }},
		"same account":   {reviewer: func() access.Principal { r := good(); r.Subject = requester.Subject; return r }, want: ErrOwnRequest},
		"account case":   {reviewer: func() access.Principal { r := good(); r.Issuer, r.Subject = "DEX", "cgvhbgljzq"; return r }, want: ErrOwnRequest},
		"other issuer":   {reviewer: func() access.Principal { r := good(); r.Issuer, r.Subject = "okta", requester.Subject; return r }},
		"user of chain":  {reviewer: func() access.Principal { r := good(); r.User = "Carol@example.com"; return r }, want: ErrOwnRequest},
		"subject chain":  {reviewer: func() access.Principal { r := good(); r.Subject = "CgVjYXJvbA"; return r }, want: ErrOwnRequest},
		"user, subject":  {reviewer: func() access.Principal { r := good(); r.User = requester.Subject; return r }, want: ErrOwnRequest},
		"subject, user":  {reviewer: func() access.Principal { r := good(); r.Issuer, r.Subject = "okta", requester.User; return r }, want: ErrOwnRequest},
		"delegated":      {reviewer: func() access.Principal { r := good(); r.Chain = []access.Hop{{Issuer: "dex", Subject: "x"}}; return r }, want: ErrNotReviewer},
		"the subagent":   {reviewer: func() access.Principal { r := good(); r.Subagent = "Orders-Agent"; return r }, want: ErrNotReviewer},
		"no subagent":    {reviewer: func() access.Principal { r := good(); r.Subagent = ""; return r }},
		"machine asks":   {reviewer: good, ask: func(a *access.Ask) { a.Request.Principal.User, a.Request.Principal.Chain = "", nil }},
		"machine itself": {reviewer: func() access.Principal { r := good(); r.Subject = requester.Subject; return r }, want: ErrOwnRequest, ask: func(a *access.Ask) { a.Request.Principal.User = "" }},
	}
	p := newPair(t, embeddedStores(t), func(c *Config) { c.MaxPendingPerPrincipal = 100 })
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			ask := newAsk(name, false, access.ApprovalTerms{})
			if test.ask != nil {
				test.ask(&ask)
			}
			a, err := p.one.Ask(t.Context(), ask)
			ok(t, err)
			for _, grant := range []bool{true, false} { // refusing is reviewing too
				got, err := p.two.Answer(t.Context(), a.ID, test.reviewer(), grant, "")
				if test.want == nil {
					ok(t, err)
					if got.State != access.Granted {
						t.Fatalf("state %s", got.State)
					}
					return
				}
				wants(t, err, test.want)
				isState(t, p.one, a.ID, access.Pending)
			}
		})
	}
	same := newPair(t, p.stores, func(c *Config) { c.AllowSameSubagent = true })
	a, err := same.one.Ask(t.Context(), newAsk("allowed", false, access.ApprovalTerms{}))
	ok(t, err)
	through := good()
	through.Subagent = requester.Subagent
	_, err = same.one.Answer(t.Context(), a.ID, through, true, "")
	ok(t, err)
}

// Two accounts of one person are one reviewer.
func TestDistinctReviewers(t *testing.T) {
	t.Parallel()
	p := newPair(t, embeddedStores(t), nil)
	a, err := p.one.Ask(t.Context(), newAsk("1", false, access.ApprovalTerms{Count: 3}))
	ok(t, err)
	_, err = p.one.Answer(t.Context(), a.ID, reviewer("bob"), true, "")
	ok(t, err)
	otherAccount := reviewer("bob")
	otherAccount.Issuer, otherAccount.Subject, otherAccount.User = "okta", "okta-bob", "BOB@example.com"
	otherUser := reviewer("bob")
	otherUser.User = "robert@example.com"
	for name, who := range map[string]access.Principal{"the same": reviewer("bob"), "another account": otherAccount, "another address": otherUser} {
		for _, grant := range []bool{true, false} {
			if _, err := p.one.Answer(t.Context(), a.ID, who, grant, ""); !errors.Is(err, ErrAnswered) {
				t.Errorf("%s again: %v", name, err)
			}
		}
	}
	isState(t, p.one, a.ID, access.Pending)
}

// A grant whose answers do not carry it is not used, whoever stored it.
func TestGrantMustBeCarried(t *testing.T) {
	t.Parallel()
	p := newPair(t, embeddedStores(t), nil)
	grants := func(names ...string) (answers []access.Answer) {
		for _, name := range names {
			answers = append(answers, access.Answer{Reviewer: reviewer(name), Grant: true})
		}
		return answers
	}
	self := access.Answer{Reviewer: requester, Grant: true}
	refusal := access.Answer{Reviewer: reviewer("erin")}
	for name, test := range map[string]struct {
		answers []access.Answer
		fine    bool
	}{
		"two":         {grants("bob", "dora"), true},
		"none":        {nil, false},
		"one":         {grants("bob"), false},
		"one twice":   {grants("bob", "bob"), false},
		"a refusal":   {append(grants("bob", "dora"), refusal), false},
		"oneself":     {append(grants("bob"), self), false},
		"and oneself": {append(grants("bob", "dora"), self), false},
	} {
		a, err := p.one.Ask(t.Context(), newAsk(name, false, access.ApprovalTerms{Count: 2}))
		ok(t, err)
		e, err := p.one.load(t.Context(), a.ID)
		ok(t, err)
		e.Approval.State, e.Approval.Answers = access.Granted, test.answers
		ok(t, p.one.save(t.Context(), e))
		if err := p.two.Consume(t.Context(), a.ID, a.Digest); (err == nil) != test.fine {
			t.Errorf("granted by %s: %v", name, err)
		}
	}
}

// The digest is computed again from what was stored: an ask that no longer has
// the digest of its approval does not run under it.
func TestStoredAskIsBound(t *testing.T) {
	t.Parallel()
	p := newPair(t, embeddedStores(t), nil)
	a, err := p.one.Ask(t.Context(), newAsk("1", false, access.ApprovalTerms{}))
	ok(t, err)
	_, err = p.one.Answer(t.Context(), a.ID, reviewer("bob"), true, "")
	ok(t, err)
	e, err := p.one.load(t.Context(), a.ID)
	ok(t, err)
	text := e.Approval.Ask.Request.Action.SQL.Text
	e.Approval.Ask.Request.Action.SQL.Text = "drop table orders"
	ok(t, p.one.save(t.Context(), e))
	wants(t, p.one.Consume(t.Context(), a.ID, a.Digest), ErrDigest)
	wants(t, p.one.Consume(t.Context(), a.ID, access.AskDigest(e.Approval.Ask)), ErrDigest)
	e.Approval.Ask.Request.Action.SQL.Text = text
	ok(t, p.one.save(t.Context(), e))
	ok(t, p.one.Consume(t.Context(), a.ID, a.Digest))
}

// Hearing of an approval again does not give it more time.
func TestDeadlineIsTheFirst(t *testing.T) {
	t.Parallel()
	clock := newFakeClock()
	live := newLiveSet(Config{Clock: clock.Now}.withDefaults())
	n := note{ID: "a", State: access.Pending, Version: 1, Expires: clock.Now().Add(time.Minute), Period: time.Minute}
	live.learn(n)
	clock.Advance(time.Minute)
	if due, _ := live.due(); len(due) != 1 {
		t.Fatalf("due %v", due)
	}
	clock.Advance(-time.Hour)
	n.Version++
	live.learn(n)
	if due, _ := live.due(); len(due) != 1 {
		t.Fatalf("due after the clock went back: %v", due)
	}
}

func TestCommentIsBounded(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"fine\nüber": "fine\nüber", "\x1b]0;x\x07": "\uFFFD]0;x\uFFFD", "a\xffb": "a\uFFFDb", "\u202eabc": "\uFFFDabc",
		strings.Repeat("x", maxComment+1): strings.Repeat("x", maxComment) + "…",
	} {
		if got := plain(in); got != want {
			t.Errorf("%q became %q", in, got)
		}
	}
}
