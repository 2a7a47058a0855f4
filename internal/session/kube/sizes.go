package kube

import "encoding/json"

// sizes reads what clients say of their terminal's size: JSON documents, one
// after another, however they are cut.
type sizes struct {
	rest []byte
}

// maxSizes bounds a document that is not whole yet.
const maxSizes = 1 << 10

func (s *sizes) take(p []byte, sized func(columns, rows int) error) error {
	if len(s.rest)+len(p) > maxSizes {
		return broken("a terminal's size of more than %d bytes", maxSizes)
	}
	s.rest = append(s.rest, p...)
	for {
		end := documentEnd(s.rest)
		if end == 0 {
			return nil
		}
		var size struct{ Width, Height uint16 }
		if err := json.Unmarshal(s.rest[:end], &size); err != nil {
			return broken("a terminal's size that cannot be read")
		}
		s.rest = append([]byte(nil), s.rest[end:]...)
		if err := sized(int(size.Width), int(size.Height)); err != nil {
			return err
		}
	}
}

// documentEnd is how much of b the first object takes, which has no strings with
// braces; 0 when it is not whole.
func documentEnd(b []byte) int {
	for i, c := range b {
		if c == '}' {
			return i + 1
		}
	}
	return 0
}
