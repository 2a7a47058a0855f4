package mask

import "strings"

// ContainsMask reports whether a value that a client wants to write holds what
// a mask put in the place of another value: written back, it would destroy the
// original. value is text, or decoded JSON whose names and strings are looked
// at. Text that merely has three asterisks counts too.
func ContainsMask(value any) bool {
	switch v := value.(type) {
	case string:
		return strings.Contains(v, Mark)
	case []byte:
		return strings.Contains(string(v), Mark)
	case []any:
		for _, element := range v {
			if ContainsMask(element) {
				return true
			}
		}
	case map[string]any:
		for name, member := range v {
			if ContainsMask(name) || ContainsMask(member) {
				return true
			}
		}
	}
	return false
}
