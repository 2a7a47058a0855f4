package approval

import (
	"context"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"chaperone.dev/chaperone/internal/access"
)

// maxComment bounds a reviewer's comment, in characters.
const maxComment = 2000

// Answer takes one reviewer's word. One refusal refuses; as many distinct
// reviewers as the rule wants grant. It returns the approval as it then is. The
// reviewer must be an authenticated person: Answer checks group and identity,
// not how they signed in.
func (s *Service) Answer(ctx context.Context, id string, reviewer access.Principal, grant bool, comment string) (access.Approval, error) {
	e, err := s.change(ctx, id, func(e *entry) (*step, error) {
		if err := s.mayAnswer(e, reviewer); err != nil {
			return nil, err
		}
		answer := access.Answer{Reviewer: reviewer, Grant: grant, Comment: plain(comment), Time: s.config.Clock().UTC()}
		return s.answered(e, &answer), nil
	})
	if err != nil {
		return access.Approval{}, fmt.Errorf("answer: %w", err)
	}
	return e.Approval, nil
}

// MayAnswer returns nil when Answer would take the reviewer's word now, else the
// error that it would return.
func (s *Service) MayAnswer(ctx context.Context, id string, reviewer access.Principal) error {
	e, err := s.current(ctx, id)
	if err != nil {
		return fmt.Errorf("approval %s: %w", id, err)
	}
	return s.mayAnswer(e, reviewer)
}

func (s *Service) mayAnswer(e *entry, reviewer access.Principal) error {
	if e.state() != access.Pending {
		return &StateError{e.Approval.ID, e.state()}
	}
	if err := s.mayReview(e, reviewer); err != nil {
		return err
	}
	for _, earlier := range e.Approval.Answers {
		if samePerson(reviewer, earlier.Reviewer) {
			return ErrAnswered
		}
	}
	return nil
}

func (s *Service) answered(e *entry, answer *access.Answer) *step {
	if !answer.Grant {
		return &step{to: access.Refused, answer: answer}
	}
	if len(e.Approval.Answers)+1 < e.terms().Count { // all of them grants, or it would be refused
		return &step{to: access.Pending, answer: answer}
	}
	return &step{to: access.Granted, answer: answer, edit: func(e *entry) {
		e.Approval.Expires = s.config.Clock().UTC().Add(e.period())
	}}
}

// mayReview refuses whom the terms do not name and whoever cannot be told to be
// another person than the requester and those it acts for.
func (s *Service) mayReview(e *entry, reviewer access.Principal) error {
	requester := e.Approval.Ask.Request.Principal
	switch {
	case reviewer.Subject == "" || reviewer.User == "":
		return fmt.Errorf("%w: the reviewer's token names no user, so it cannot be told who reviews", ErrNotReviewer)
	case len(reviewer.Chain) > 0:
		return fmt.Errorf("%w: a delegated token does not review", ErrNotReviewer)
	case overlaps(requester, reviewer):
		return ErrOwnRequest
	case !s.config.AllowSameSubagent && reviewer.Subagent != "" && fold(reviewer.Subagent) == fold(requester.Subagent):
		return fmt.Errorf("%w: the reviewer's token came through %s, which is what asks; sign in through another client", ErrNotReviewer, reviewer.Subagent)
	case !reviewer.InGroup(e.terms().Groups...):
		return fmt.Errorf("%w: it takes a member of %s", ErrNotReviewer, strings.Join(e.terms().Groups, " or "))
	}
	return nil
}

// overlaps reports whether any name of the reviewer is a name of the requester
// or of anyone in its chain. A subject also counts as a user, because issuers
// that map no user put the address there.
func overlaps(requester, reviewer access.Principal) bool {
	theirs := map[string]bool{}
	for _, name := range requester.Identities() {
		theirs[fold(name)] = true
	}
	for _, subject := range subjects(requester) {
		theirs[fold(subject)] = true
	}
	for _, name := range reviewer.Identities() {
		if theirs[fold(name)] {
			return true
		}
	}
	users := map[string]bool{fold(requester.User): requester.User != ""}
	for _, hop := range requester.Chain {
		users[fold(hop.User)] = hop.User != ""
	}
	for _, subject := range subjects(reviewer) {
		if users[fold(subject)] {
			return true
		}
	}
	return false
}

func subjects(p access.Principal) []string {
	all := []string{p.Subject}
	for _, hop := range p.Chain {
		all = append(all, hop.Subject)
	}
	return all
}

// samePerson reports whether two reviewers are, or may be, one: the same
// account of an issuer, or the same user by whatever account.
func samePerson(a, b access.Principal) bool {
	return fold(a.Issuer) == fold(b.Issuer) && fold(a.Subject) == fold(b.Subject) || fold(a.User) == fold(b.User)
}

// fold makes names that differ only in case or outer space equal. Each rune is
// replaced by the smallest that it folds to, as strings.EqualFold compares.
func fold(name string) string {
	return strings.Map(func(r rune) rune {
		smallest := r
		for next := unicode.SimpleFold(r); next != r; next = unicode.SimpleFold(next) {
			smallest = min(smallest, next)
		}
		return smallest
	}, strings.TrimSpace(name))
}

// plain keeps a comment from acting on the terminal that shows it.
func plain(comment string) string {
	comment = strings.Map(func(r rune) rune {
		if r == '\n' || unicode.IsPrint(r) {
			return r
		}
		return utf8.RuneError
	}, strings.ToValidUTF8(comment, "\uFFFD"))
	if runes := []rune(comment); len(runes) > maxComment {
		comment = string(runes[:maxComment]) + "…"
	}
	return comment
}

// upheld checks once more, when a grant is to be used, that its answers carry
// it: as many as the rule wants, of people who may.
func (s *Service) upheld(e *entry) error {
	answers := e.Approval.Answers
	if len(answers) < e.terms().Count {
		return fmt.Errorf("%d answers of %d: %w", len(answers), e.terms().Count, ErrNotReviewer)
	}
	for i, answer := range answers {
		if !answer.Grant {
			return &StateError{e.Approval.ID, access.Refused}
		}
		if err := s.mayReview(e, answer.Reviewer); err != nil {
			return err
		}
		for _, earlier := range answers[:i] {
			if samePerson(answer.Reviewer, earlier.Reviewer) {
				return ErrAnswered
			}
		}
	}
	return nil
}
