package tapsink

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"
	"unicode/utf8"

	"chaperone.dev/chaperone/internal/access"
)

// A record writes one response to the recorder, up to its bound.
type record struct {
	to       Recorder
	decision decision
	left     int64 // bytes of body that may still be recorded
	omitted  int64
}

func (r *record) append(ctx context.Context, d access.Durability, evs ...access.Event) error {
	for i := range evs {
		evs[i].Request, evs[i].Session = r.decision.request, r.decision.session
	}
	for len(evs) > 0 {
		n := min(len(evs), maxEvents)
		if err := r.to.Append(ctx, d, evs[:n]...); err != nil {
			return fmt.Errorf("record: %w", err)
		}
		evs = evs[n:]
	}
	return nil
}

// maxEvents is how many go into one Append, of 8 MiB at most.
const maxEvents = 8

func (r *record) head(ctx context.Context, status int, hs headers) error {
	return r.append(ctx, access.Written, access.Event{Body: &access.BodyChunk{Status: status, Headers: hs.recorded()}})
}

// chunk writes a piece of the body, as far as it is recorded at all.
func (r *record) chunk(ctx context.Context, body []byte) error {
	evs := r.body(body)
	if len(evs) == 0 {
		return nil
	}
	return r.append(ctx, access.Written, evs...)
}

// maxText bounds the text of one event: the recorder takes events of up to
// 1 MiB, and encoding can make six bytes of one.
const maxText = 128 << 10

// body returns the events for a piece of the body, none when nothing of it is
// recorded.
func (r *record) body(body []byte) (evs []access.Event) {
	kept := wholeRunes(body, r.left)
	r.omitted += int64(len(body) - len(kept))
	r.left -= int64(len(kept))
	if len(kept) < len(body) {
		r.left = 0 // what is recorded has no gaps
	}
	for len(kept) > 0 {
		text := wholeRunes(kept, maxText)
		kept = kept[len(text):]
		chunk := &access.BodyChunk{}
		if utf8.Valid(text) {
			chunk.Text = string(text)
		} else {
			chunk.Bytes = append([]byte(nil), text...)
		}
		evs = append(evs, access.Event{Body: chunk})
	}
	return evs
}

// wholeRunes returns the first n bytes of text or fewer, not cutting a
// character.
func wholeRunes(text []byte, n int64) []byte {
	if n >= int64(len(text)) {
		return text
	}
	for back := int64(0); back < utf8.UTFMax && back < n; back++ {
		if utf8.RuneStart(text[n-back]) {
			return text[:n-back]
		}
	}
	return text[:n]
}

// end writes the last piece, how much was left out, the trailers and the end.
func (r *record) end(ctx context.Context, body []byte, trailers headers, how access.Ended) error {
	evs := r.body(body)
	if r.omitted > 0 || len(trailers) > 0 {
		rest := &access.BodyChunk{Omitted: r.omitted}
		if len(trailers) > 0 {
			rest.Headers = trailers.recorded()
		}
		evs = append(evs, access.Event{Body: rest})
	}
	return r.append(ctx, access.Written, append(evs, access.Event{Ended: &how})...)
}

// refused writes that another answer went out in place of the response.
func (r *record) refused(ctx context.Context, d *access.Denial, took time.Duration) error {
	return r.append(ctx, access.Synced,
		access.Event{Denied: &access.Denied{Denial: *d, Resource: d.Resource}},
		access.Event{Ended: &access.Ended{Tag: strconv.Itoa(http.StatusBadGateway), Duration: took, Error: d.Message}})
}
