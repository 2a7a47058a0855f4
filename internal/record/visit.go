package record

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// A Visit says which events of a recording somebody wants to see while it is
// verified.
type Visit struct {
	Types []string  // as access.Event.Type names them
	Since time.Time // none recorded before this
	// Event sees each of them, oldest first. Its error ends the visit.
	Event func(access.Event) error
	// Progress, when set, is told now and then how many events were read.
	Progress func(events uint64)
}

// progressEvery is how many events are read between two calls of Progress.
const progressEvery = 1 << 12

// errPruned: a Visit cannot begin again, as Verify does, for it has shown events.
var errPruned = errors.New("a part was pruned meanwhile; begin again")

// VerifyEach is Verify, and shows what v asks for as it is read: with a memory
// that does not depend on how much there is. What was shown before an error was
// as it had been written up to there; only a nil error says that nothing is
// missing.
func VerifyEach(ctx context.Context, dir string, v Visit) (Report, error) {
	marks := make([][]byte, len(v.Types))
	for i, t := range v.Types {
		marks[i] = []byte(`"` + t + `":`)
	}
	read := uint64(0)
	each := func(line []byte, seq uint64) error {
		if read++; read%progressEvery == 0 && v.Progress != nil {
			v.Progress(read)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return v.show(line, seq, marks)
	}
	r, err := (&verification{each: each}).run(dir)
	if errors.Is(err, fs.ErrNotExist) && read > 0 {
		err = fmt.Errorf("verify recording: %w", errPruned)
	}
	return r, err
}

// show decodes a line that may hold what is asked for: most hold rows, and need
// no decoding.
func (v *Visit) show(line []byte, seq uint64, marks [][]byte) error {
	for i, mark := range marks {
		if !bytes.Contains(line, mark) {
			continue
		}
		ev, err := decodeEvent(line, seq)
		if err != nil {
			return fmt.Errorf("event %d: %w", seq, err)
		}
		if ev.Type() == v.Types[i] {
			if ev.Time.Before(v.Since) {
				return nil
			}
			return v.Event(ev)
		}
	}
	return nil
}
