package ssh

import (
	"context"
	"fmt"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/quota"
	"chaperone.dev/chaperone/internal/session/transcript"
)

// newTranscript is for the streams of an act: those of files in transit are only
// counted.
func (s *session) newTranscript(v *verdict, terminal bool) *transcript.Transcript {
	act := v.request.Action.SSH.Act
	c := transcript.Config{Text: act == access.ActExec || act == access.ActShell, Terminal: terminal, Bound: s.cfg.RecordedOutput,
		Append: func(ctx context.Context, c *access.StreamChunk) error {
			return s.deps.Recorder.Append(ctx, access.Written, s.event(access.Event{Request: v.request.ID, Stream: c}))
		}}
	if terminal {
		c.Bound = s.cfg.RecordedTerminal
	}
	c.Full = func() error { return v.limit(fmt.Sprintf("the terminal showed more than %d bytes", c.Bound)) }
	return transcript.New(c)
}

// sums ends a transcript.
func (v *verdict) sums(t *transcript.Transcript) {
	ctx, cancel := context.WithTimeout(context.Background(), recordWithin)
	defer cancel()
	var err error
	if v.streams, err = t.Sums(ctx); err != nil {
		v.session.log.Error("the end of a stream is not recorded", "request", v.request.ID, "error", err)
	}
}

// usedUp is the denial of an act that ran into a limit over several under way.
func usedUp(v *verdict, err error) *access.Denial {
	return quota.DenialOf(err, v.request.ID, v.request.Resource.Name, v.decision)
}
