package policy

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/interpreter"

	"chaperone.dev/chaperone/internal/access"
)

// An outcome is what a condition comes to. unknown is neither true nor false:
// it depends on something that is not known about the request.
type outcome uint8

const (
	no outcome = iota
	yes
	unknown
	failed
)

func (o outcome) String() string { return [...]string{"false", "true", "unknown", "error"}[o] }

// An evaluation is the state of one decision. It implements cel.Activation. It
// serves one goroutine at a time and is reused.
type evaluation struct {
	env       *environment
	frame     *interpreter.ExecutionFrame
	tracker   cost.Tracker
	spent     uint64
	small     bool // the request is within smallRequest
	req       access.Request
	now       time.Time
	principal *object
	resource  *object
	sql       *object
	http      *object
	ssh       *object
	k8s       *object
	request   *object
	matched   [3][]*rule // by effect
	suspects  []*rule    // deny rules that match because something is unknown
}

func newEvaluation(s *Set) *evaluation {
	v := s.env.vocabulary
	return &evaluation{
		env:     s.env,
		sql:     newObject(v.sql, nil, s.env.box),
		http:    newObject(v.http, nil, s.env.box),
		ssh:     newObject(v.ssh, nil, s.env.box),
		k8s:     newObject(v.k8s, nil, s.env.box),
		request: newObject(v.request, nil, s.env.box),
	}
}

// begin returns an evaluation without a request; end gives it back.
func (s *Set) begin() *evaluation {
	e := s.idle.Get().(*evaluation)
	frame, err := interpreter.NewExecutionFrame(cel.Activation(e))
	if err != nil { // an activation is always accepted
		panic("policy: " + err.Error())
	}
	e.frame, e.spent, e.small = frame, 0, false
	return e
}

// end forgets the request. After a panic it must not be called: the state is
// left to the garbage collector.
func (s *Set) end(e *evaluation) {
	e.frame.SetCostTracker(nil)
	e.frame.Close()
	e.frame, e.req = nil, access.Request{}
	e.principal, e.resource = nil, nil
	e.sql.reset(nil, e.env.box)
	e.http.reset(nil, e.env.box)
	e.ssh.reset(nil, e.env.box)
	e.k8s.reset(nil, e.env.box)
	e.request.reset(nil, e.env.box)
	for i := range e.matched {
		clear(e.matched[i])
		e.matched[i] = e.matched[i][:0]
	}
	clear(e.suspects)
	e.suspects = e.suspects[:0]
	s.idle.Put(e)
}

// of prepares e for conditions on req.
func (e *evaluation) of(req *access.Request, sc *scope, now time.Time) {
	e.req, e.now = *req, now
	if e.req.Time.IsZero() {
		e.req.Time = now
	}
	e.principal, e.resource = sc.object, sc.target.object
	e.sql.source, e.http.source, e.ssh.source, e.k8s.source, e.request.source = e.req.Action.SQL, e.req.Action.HTTP, e.req.Action.SSH, e.req.Action.K8s, &e.req
	e.small = sc.small && isSmallAction(&e.req.Action)
}

// ResolveName implements cel.Activation.
func (e *evaluation) ResolveName(name string) (any, bool) {
	switch name {
	case "sql":
		return e.sql, e.req.Action.SQL != nil
	case "http":
		return e.http, e.req.Action.HTTP != nil
	case "ssh":
		return e.ssh, e.req.Action.SSH != nil
	case "k8s":
		return e.k8s, e.req.Action.K8s != nil
	case "principal":
		return e.principal, e.principal != nil
	case "resource":
		return e.resource, e.resource != nil
	case "request":
		return e.request, e.request.source != nil
	case "now":
		return decisionTime(e.now), !e.now.IsZero()
	}
	return nil, false
}

// Parent implements cel.Activation.
func (e *evaluation) Parent() cel.Activation { return nil }

// run evaluates c. The error is set when the outcome is failed, and only then.
func (e *evaluation) run(c *condition) (outcome, error) {
	if c.always {
		return yes, nil
	}
	counted := !e.small || !c.cheap()
	e.count(counted)
	v, _, err := c.program.Eval(e.frame)
	if counted {
		e.spent += e.tracker.ActualCost()
		if e.spent > maxDecisionCost {
			return failed, errors.New("the policies that apply cost too much to evaluate on this request")
		}
	}
	return outcomeOf(v, err)
}

// count makes the next evaluation count its cost, or not.
func (e *evaluation) count(counted bool) {
	if !counted {
		e.frame.SetCostTracker(nil)
		return
	}
	e.tracker = *e.env.tracker
	e.frame.SetCostTracker(&e.tracker)
}

func outcomeOf(v ref.Val, err error) (outcome, error) {
	if err != nil {
		if _, limit := errors.AsType[interpreter.EvalCancelledError](err); limit {
			return failed, errors.New("it costs too much to evaluate on this request")
		}
		return failed, errors.New(strings.TrimPrefix(err.Error(), "internal error: "))
	}
	switch v := v.(type) {
	case types.Bool:
		if v {
			return yes, nil
		}
		return no, nil
	case *types.Unknown:
		return unknown, nil
	}
	return failed, fmt.Errorf("it came to %T, not to true or false", v)
}

// isSmallName and the functions below measure a request against smallRequest.
func isSmallName(s string) bool { return len(s) <= smallName }

func areSmall(lists ...[]string) bool {
	for _, list := range lists {
		if len(list) > smallList {
			return false
		}
		for _, s := range list {
			if len(s) > smallName {
				return false
			}
		}
	}
	return true
}

func isSmallPrincipal(p *access.Principal) bool {
	if !areSmall(p.Groups, []string{p.Issuer, p.Subject, p.User, p.Subagent, p.Instance, p.Workflow, p.Job}) || len(p.Chain) > smallList {
		return false
	}
	for _, h := range p.Chain {
		if !areSmall([]string{h.Issuer, h.Subject, h.User, h.Actor}) {
			return false
		}
	}
	return true
}

func isSmallAction(a *access.Action) bool {
	switch {
	case a.SQL != nil:
		s := a.SQL
		return len(s.Text) <= smallText && isSmallName(s.Command) &&
			areSmall(s.Tables, s.Reads, s.Writes, s.Columns, s.Functions, s.Channels, s.Unknown)
	case a.HTTP != nil:
		h := a.HTTP
		return isSmallName(h.Method) && isSmallName(h.Host) && isSmallName(h.Path) &&
			isSmallMultimap(h.Query) && isSmallMultimap(h.Headers)
	case a.SSH != nil:
		return isSmallSSH(a.SSH)
	case a.K8s != nil:
		return isSmallK8s(a.K8s)
	}
	return true
}

func isSmallK8s(k *access.K8s) bool {
	names := []string{k.Verb, k.Group, k.Version, k.Resource, k.Subresource, k.Namespace, k.Name, k.Path, k.LabelSelector, k.FieldSelector, k.Container}
	o := k.Object
	return areSmall(names, k.Powers, k.Command) && (o == nil || areSmall([]string{o.Kind, o.Type, o.ServiceAccount},
		o.HostNamespaces, o.HostPaths, o.Capabilities, o.Images, o.Secrets, o.Verbs))
}

func isSmallMultimap(m map[string][]string) bool {
	if len(m) > smallList {
		return false
	}
	for k, values := range m {
		if !isSmallName(k) || !areSmall(values) {
			return false
		}
	}
	return true
}
