// Package policy owns what is allowed: it compiles policy files into an
// immutable Set, and an Engine answers access requests from the current Set.
//
// A policy says whom it is about (principal), which targets it covers
// (resource) and what its rules say about a request (when, effect). Deny beats
// approve beats allow; what no rule allows is denied; masks and limits of all
// matching rules add up. A condition that errors denies the whole request, and
// so does a panic. What could not be known about a request (an HTTP body that
// was not read, the tables of a statement that could not be resolved) is
// unknown to conditions as well: a rule that depends on it does not allow and
// does not ask for approval, and a rule that might deny does (reason unreadable).
//
// The package refuses to read tokens, parse statements, mask answers or ask
// reviewers: it gets a finished access.Request and returns an access.Decision.
package policy
