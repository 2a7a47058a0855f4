package ingress

import (
	"net"
	"net/netip"
	"sync"
)

// sources counts the connections of each client address that have not
// authenticated, so that one client cannot keep the others out. It holds no more
// addresses than there are such connections.
type sources struct {
	most int

	mu      sync.Mutex
	waiting map[netip.Prefix]int
}

func newSources(most int) *sources { return &sources{most: most, waiting: map[netip.Prefix]int{}} }

// enter takes a place for addr, which leave gives back, once; ok is false when
// the address has none left.
func (s *sources) enter(addr net.Addr) (leave func(), ok bool) {
	from := sourceOf(addr)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting[from] >= s.most {
		return nil, false
	}
	s.waiting[from]++
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.waiting[from]--; s.waiting[from] == 0 {
			delete(s.waiting, from)
		}
	}), true
}

// sourceOf is what one client has: an IPv4 address, or 64 bits of an IPv6 one.
// An address that is neither shares its places with its like.
func sourceOf(addr net.Addr) netip.Prefix {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	bits := ip.BitLen()
	if ip.Is6() {
		bits = 64
	}
	prefix, err := ip.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return prefix
}
