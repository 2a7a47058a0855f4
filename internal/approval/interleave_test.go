package approval

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/store"
)

const interleavings = 1000

// Approve, refuse, expire, leave, kill and consume at the same time, at two
// replicas, with a recording that fails now and then: what ran was granted, had
// not ended, ran once, and every step is on record in an order that the drawing
// in the package comment allows.
func TestInterleavings(t *testing.T) {
	t.Parallel()
	onBothStores(t, func(t *testing.T, open stores) {
		s := open(t)
		tally := map[access.ApprovalState]int{}
		ran := 0
		var mu sync.Mutex
		var wg sync.WaitGroup
		seeds := make(chan uint64)
		for range 12 {
			wg.Go(func() {
				for seed := range seeds {
					end, n := interleave(t, s, seed)
					mu.Lock()
					tally[end]++
					ran += n
					mu.Unlock()
				}
			})
		}
		for seed := range uint64(interleavings) {
			seeds <- seed
		}
		close(seeds)
		wg.Wait()
		t.Logf("ends %v, %d executions", tally, ran)
		for _, state := range []access.ApprovalState{access.Refused, access.Expired, access.Abandoned, access.Consumed} {
			if tally[state] < interleavings/100 {
				t.Errorf("only %d ended %s: the test does not reach it", tally[state], state)
			}
		}
	})
}

// A play is one interleaving.
type play struct {
	*pair
	random   *rand.Rand
	approval access.Approval
	window   bool
	ran      atomic.Int64 // executions of what was granted
	wrong    atomic.Int64 // executions of anything else
}

func interleave(t *testing.T, s [2]store.Store, seed uint64) (access.ApprovalState, int) {
	random := rand.New(rand.NewPCG(seed, 4))
	p := &play{random: random, window: random.IntN(8) == 0}
	p.pair = newPair(t, s, func(c *Config) { c.LeaseTTL = 10 * time.Minute })
	if random.IntN(4) == 0 {
		var calls atomic.Uint64
		every := uint64(3 + random.IntN(5))
		p.recorder.failWith(func(e access.Event) error {
			if e.Approval.State != access.Pending && calls.Add(1)%every == 0 {
				return errors.New("disk full")
			}
			return nil
		})
	}
	terms := access.ApprovalTerms{Count: 1 + random.IntN(2)}
	if p.window {
		terms.Window = 30 * time.Minute
	}
	a, err := p.one.Ask(t.Context(), newAsk(fmt.Sprint("interleaving ", seed), random.IntN(3) > 0, terms))
	if err != nil {
		t.Errorf("seed %d: %v", seed, err)
		return "", 0
	}
	p.approval = a
	p.perform(t.Context())
	p.recorder.failWith(nil)
	end, err := p.two.Get(t.Context(), a.ID)
	if err == nil {
		err = p.verify(end)
	}
	if err != nil {
		t.Errorf("seed %d: %v; recorded %v", seed, err, p.recorder.steps(a.ID))
	}
	return end.State, int(p.ran.Load())
}

// perform runs a random choice of acts at once, each a few yields late.
func (p *play) perform(ctx context.Context) {
	acts := []func(context.Context, *Service){
		p.consume, p.consume, p.consume, p.answer("bob", true), p.answer("dora", true), // most plays have these
	}
	others := []func(context.Context, *Service){
		p.consume, p.consumeOther, p.answer("bob", true), p.answer("erin", true), p.answer("frank", false), p.answerSelf,
		p.expire, p.leave, p.kill, p.sweep, p.look, p.clockBack,
	}
	for range 1 + p.random.IntN(5) {
		acts = append(acts, others[p.random.IntN(len(others))])
	}
	p.random.Shuffle(len(acts), func(i, j int) { acts[i], acts[j] = acts[j], acts[i] })
	var wg sync.WaitGroup
	for _, act := range acts {
		replica, late := []*Service{p.one, p.two}[p.random.IntN(2)], p.random.IntN(200)
		wg.Go(func() {
			for range late {
				runtime.Gosched()
			}
			act(ctx, replica)
		})
	}
	wg.Wait()
}

func (p *play) consume(ctx context.Context, s *Service) {
	for range 3 {
		err := s.Consume(ctx, p.approval.ID, p.approval.Digest)
		if err == nil {
			p.ran.Add(1)
		}
		var state *StateError
		if errors.As(err, &state) && state.State != access.Pending {
			return
		}
		runtime.Gosched()
	}
}

func (p *play) consumeOther(ctx context.Context, s *Service) {
	other := access.AskDigest(newAsk("something else", true, access.ApprovalTerms{}))
	if s.Consume(ctx, p.approval.ID, other) == nil {
		p.wrong.Add(1)
	}
}

func (p *play) answer(name string, grant bool) func(context.Context, *Service) {
	return func(ctx context.Context, s *Service) {
		_, _ = s.Answer(ctx, p.approval.ID, reviewer(name), grant, "")
	}
}

func (p *play) answerSelf(ctx context.Context, s *Service) {
	self := reviewer("alice")
	if _, err := s.Answer(ctx, p.approval.ID, self, true, ""); err == nil {
		p.wrong.Add(1)
	}
}

func (p *play) expire(context.Context, *Service)    { p.clock.Advance(time.Hour) }
func (p *play) clockBack(context.Context, *Service) { p.clock.Advance(-time.Hour) }

func (p *play) leave(ctx context.Context, _ *Service) { _ = p.one.Abandon(ctx, p.approval.ID) }

// kill ends the lease as the death of the asking replica does.
func (p *play) kill(ctx context.Context, _ *Service) {
	_ = p.stores[0].Release(ctx, p.one.owner, leasePrefix+p.approval.ID)
}

func (p *play) sweep(ctx context.Context, s *Service) { s.endDue(ctx) }

func (p *play) look(ctx context.Context, s *Service) { _, _ = s.Get(ctx, p.approval.ID) }

// verify holds what happened against the recording.
func (p *play) verify(end access.Approval) error {
	steps := p.recorder.steps(p.approval.ID)
	if n := p.wrong.Load(); n != 0 {
		return fmt.Errorf("%d wrong executions or answers", n)
	}
	uses := 0
	state := access.Pending
	for i, step := range steps {
		switch {
		case i == 0 && step == access.Pending:
		case step == access.Consumed && state == access.Granted:
			uses++
			if !p.window {
				state = access.Consumed
			}
		case step == access.Pending && state == access.Pending && i < 3: // one of two grants
		case step != state && follows(state, step):
			state = step
		default:
			return fmt.Errorf("step %d, %s, after %s", i, step, state)
		}
	}
	if end.State != state {
		return fmt.Errorf("it is %s, recorded is %s", end.State, state)
	}
	if ran := int(p.ran.Load()); ran != uses || (!p.window && ran > 1) {
		return fmt.Errorf("%d executions, %d recorded", ran, uses)
	}
	if uses > 0 && !slices.Contains(steps, access.Granted) {
		return errors.New("ran without a grant")
	}
	seen := map[string]bool{}
	for _, answer := range end.Answers {
		if seen[answer.Reviewer.User] {
			return fmt.Errorf("%s answered twice", answer.Reviewer.User)
		}
		seen[answer.Reviewer.User] = true
		if uses > 0 && !answer.Grant {
			return errors.New("ran in spite of a refusal")
		}
	}
	if uses > 0 && len(end.Answers) < end.Ask.Decision.Obligations.Approval.Count {
		return errors.New("ran with too few grants")
	}
	return nil
}
