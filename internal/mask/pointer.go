package mask

import (
	"errors"
	"fmt"
	"strings"
)

// A node is one place in the tree of masked fields. Each pointer is a path of
// names from the root; any stands for every name and every index.
type node struct {
	names   map[string]*node
	any     *node
	masked  bool    // a pointer ends here
	partial bool    // all pointers that end here are partial
	mark    string  // what stands for the value; "" is Mark
	within  *Masker // instead: the value is JSON text, and this masks it

	exempt    bool       // masked, unless the object around is spared
	exemption *Exemption // of the object here
}

// parsePointer splits a JSON pointer (RFC 6901) into its unescaped names. A
// name that is * alone is a wildcard; any other * is refused, for it would look
// like a wildcard and match nothing.
func parsePointer(pointer string) ([]string, error) {
	if !strings.HasPrefix(pointer, "/") {
		return nil, fmt.Errorf("pointer %q does not begin with /", pointer)
	}
	if len(pointer) > 4096 {
		return nil, errors.New("pointer of more than 4096 bytes")
	}
	tokens := strings.Split(pointer[1:], "/")
	if len(tokens) > maxDepth {
		return nil, fmt.Errorf("pointer of more than %d names", maxDepth)
	}
	for i, token := range tokens {
		name, err := unescapeToken(token)
		if err != nil {
			return nil, fmt.Errorf("pointer %q: %w", pointer, err)
		}
		tokens[i] = name
	}
	return tokens, nil
}

func unescapeToken(token string) (string, error) {
	if token != "*" && strings.Contains(token, "*") {
		return "", errors.New("* stands for one whole name or index and cannot be part of one")
	}
	for rest := token; ; {
		i := strings.IndexByte(rest, '~')
		if i < 0 {
			break
		}
		if i+1 >= len(rest) || rest[i+1] != '0' && rest[i+1] != '1' {
			return "", errors.New("~ must be written ~0, and / in a name ~1")
		}
		rest = rest[i+2:]
	}
	return strings.ReplaceAll(strings.ReplaceAll(token, "~1", "/"), "~0", "~"), nil
}

func (n *node) add(tokens []string, partial bool) {
	n = n.at(tokens)
	n.partial = partial && (!n.masked || n.partial) // redact beats partial
	n.masked = true
}

// at returns the place that tokens lead to.
func (n *node) at(tokens []string) *node {
	for _, token := range tokens {
		next := n.any
		if token != "*" {
			next = n.names[token]
		}
		if next == nil {
			next = &node{}
			switch {
			case token == "*":
				n.any = next
			case n.names == nil:
				n.names = map[string]*node{token: next}
			default:
				n.names[token] = next
			}
		}
		n = next
	}
	return n
}

// follow appends to reached the nodes to which name leads from those in from.
func follow(reached, from []*node, name []byte) []*node {
	for _, n := range from {
		if next := n.names[string(name)]; next != nil {
			reached = append(reached, next)
		}
		if n.any != nil {
			reached = append(reached, n.any)
		}
	}
	return reached
}

func (n *node) clone() *node {
	out := *n
	out.names = make(map[string]*node, len(n.names))
	for name, next := range n.names {
		out.names[name] = next.clone()
	}
	if n.any != nil {
		out.any = n.any.clone()
	}
	return &out
}
