package mask

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"chaperone.dev/chaperone/internal/access"
)

// Mark stands for whatever was hidden. A partial mask is the Mark followed by
// the last four characters of the value.
const Mark = "***"

// PartialKept is how many characters at its end a partial mask keeps of a value.
const PartialKept = 4

const (
	maxMasks       = 1024
	partialMinimum = 8 // of a shorter value a partial mask keeps nothing
)

// A Writer masks one body. Write takes the next piece and returns what is now
// safe to pass on, possibly nothing; the result is valid until the next call.
// Close returns what was still held. After an error the body must not continue:
// what was returned before is safe, the rest is not to be had. Masked counts
// the values that were replaced. A Writer is not safe for concurrent use.
type Writer interface {
	Write(p []byte) ([]byte, error)
	Close() ([]byte, error)
	Masked() int64
}

// A Masker is a compiled set of masks. It is immutable and safe for concurrent
// use; the Writers it makes are not.
type Masker struct {
	fields    *node
	detectors *detectors
	columns   bool
}

// Compile checks masks and makes a Masker of them. It reports every fault: a
// mask with none or several of column, json and detect, a pointer or detector
// name that is not understood, an unknown way to mask.
func Compile(masks []access.Mask) (*Masker, error) {
	if len(masks) > maxMasks {
		return nil, fmt.Errorf("%d masks, at most %d", len(masks), maxMasks)
	}
	m := &Masker{}
	var faults []error
	for i, mask := range masks {
		if err := m.add(mask); err != nil {
			faults = append(faults, fmt.Errorf("mask %d: %w", i, err))
		}
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	if m.detectors != nil {
		m.detectors.index()
	}
	return m, nil
}

// A Field is a place in a JSON document that a protocol, not a policy, has
// masked. Pointer is as in access.Mask. The value becomes Mark; or, when Within
// is set, it is a string that holds a document of its own, which Within masks. A
// string that holds none becomes "***". Exempt says that an Exemption may spare it.
type Field struct {
	Pointer string
	Mark    string
	Within  *Masker
	Exempt  bool
}

// With returns a Masker that masks the fields beside what m does, but for those
// that the exemptions spare. Exemptions spare nothing that m itself masks.
func (m *Masker) With(fields []Field, exemptions ...Exemption) (*Masker, error) {
	out := *m
	out.fields = &node{}
	if m.fields != nil {
		out.fields = m.fields.clone()
	}
	for _, f := range fields {
		tokens, err := parsePointer(f.Pointer)
		if err != nil {
			return nil, fmt.Errorf("field: %w", err)
		}
		if f.Within != nil {
			out.fields.at(tokens).within = f.Within
			continue
		}
		if f.Exempt {
			out.fields.at(tokens).exempt = true
		} else {
			out.fields.add(tokens, false)
		}
		out.fields.at(tokens).mark = f.Mark
	}
	for _, e := range exemptions {
		var tokens []string
		if e.Pointer != "" {
			var err error
			if tokens, err = parsePointer(e.Pointer); err != nil {
				return nil, fmt.Errorf("exemption: %w", err)
			}
		}
		out.fields.at(tokens).exemption = &e
	}
	return &out, nil
}

func (m *Masker) add(mask access.Mask) error {
	if mask.With != "" && mask.With != access.Redact && mask.With != access.Partial {
		return fmt.Errorf("with: %q is not redact or partial", mask.With)
	}
	given := 0
	for _, set := range []bool{mask.Column != "", mask.JSON != "", len(mask.Detect) > 0, len(mask.SecretsExcept) > 0} {
		if set {
			given++
		}
	}
	partial := mask.With == access.Partial
	switch {
	case given != 1:
		return errors.New("exactly one of column, json, detect and secrets_except must be set")
	case mask.Column != "":
		m.columns = true
	case mask.JSON != "":
		tokens, err := parsePointer(mask.JSON)
		if err != nil {
			return fmt.Errorf("json: %w", err)
		}
		if m.fields == nil {
			m.fields = &node{}
		}
		m.fields.add(tokens, partial)
	case len(mask.Detect) > 0:
		if m.detectors == nil {
			m.detectors = &detectors{}
		}
		return m.detectors.add(mask.Detect, partial)
	}
	return nil // an exception takes off a mask that is Kubernetes' own
}

// Fields reports whether there are masks of JSON fields.
func (m *Masker) Fields() bool { return m.fields != nil }

// Detects reports whether there are detectors.
func (m *Masker) Detects() bool { return m.detectors != nil }

// Columns reports whether there are masks of SQL columns, which no Writer
// applies.
func (m *Masker) Columns() bool { return m.columns }

// Empty reports whether there is nothing to mask.
func (m *Masker) Empty() bool { return m.fields == nil && m.detectors == nil && !m.columns }

// Text runs the detectors over one whole value, such as a cell of a result or
// the value of a header. When nothing is found it returns b itself. Otherwise
// the result is a new slice.
func (m *Masker) Text(b []byte) (text []byte, masked bool) {
	if m.detectors == nil {
		return b, false
	}
	text, n := m.detectors.mask(b)
	return text, n > 0
}

// keepLast returns the partial mask of text.
func keepLast(text []byte) []byte {
	out := []byte(Mark)
	if utf8.RuneCount(text) < partialMinimum {
		return out
	}
	end := len(text)
	for range PartialKept {
		_, n := utf8.DecodeLastRune(text[:end])
		end -= n
	}
	return append(out, text[end:]...)
}
