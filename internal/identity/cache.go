package identity

import (
	"container/list"
	"crypto/sha256"
	"slices"
	"sync"

	"chaperone.dev/chaperone/internal/access"
)

// A verified token: everything about it that does not depend on the time, on
// revocation, or on its key being published still.
type verified struct {
	issuer *issuer
	key    keyID
	times  times
	who    access.Principal
	lookUp string // whose groups the directory is asked for; "" for nobody's
}

// principal returns a copy that the caller owns.
func (k *verified) principal() access.Principal {
	p := k.who
	p.Groups = slices.Clone(p.Groups)
	p.Chain = slices.Clone(p.Chain)
	return p
}

// A tokenCache remembers the tokens used last, by the digest of the whole token:
// another signature on the same claims is another token. Entries are immutable.
type tokenCache struct {
	size int

	mu     sync.Mutex
	recent *list.List // of cached, the latest used first
	index  map[[sha256.Size]byte]*list.Element
}

type cached struct {
	digest [sha256.Size]byte
	token  *verified
}

func newTokenCache(size int) *tokenCache {
	return &tokenCache{size: size, recent: list.New(), index: map[[sha256.Size]byte]*list.Element{}}
}

// get returns nil for an unknown token.
func (c *tokenCache) get(digest [sha256.Size]byte) *verified {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.index[digest]
	if e == nil {
		return nil
	}
	c.recent.MoveToFront(e)
	return e.Value.(cached).token
}

func (c *tokenCache) add(digest [sha256.Size]byte, token *verified) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop(digest)
	c.index[digest] = c.recent.PushFront(cached{digest, token})
	for c.recent.Len() > c.size {
		c.drop(c.recent.Back().Value.(cached).digest)
	}
}

func (c *tokenCache) remove(digest [sha256.Size]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop(digest)
}

func (c *tokenCache) invalidate(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for digest, e := range c.index {
		if e.Value.(cached).token.who.Token.ID == id {
			c.drop(digest)
		}
	}
}

// drop removes an entry. The caller holds mu.
func (c *tokenCache) drop(digest [sha256.Size]byte) {
	if e := c.index[digest]; e != nil {
		c.recent.Remove(e)
		delete(c.index, digest)
	}
}
