package mask

import "slices"

// maxSpared bounds an object that an Exemption may spare; a longer one is masked.
// It is held twice: as it came, and masked.
const maxSpared = 3 << 20

// An Exemption spares an object the Fields that are marked Exempt, when a member
// of that object is one of Values. The member stands in the object itself, once,
// and is text; whatever else it is, the object is masked. What the object holds
// in places of other Exemptions is judged by those.
//
// Since the member may come last, a JSON writer holds each object until it has
// seen all of it; one of more than 3 MiB is masked.
type Exemption struct {
	Pointer string // of the object, as in Field; "" is the document
	Member  string
	Values  []string
}

// A choosing is an object being read of which it is not known yet whether it is
// spared.
type choosing struct {
	exemption *Exemption
	masked    *JSON  // reads it and, in its out, has it masked
	came      []byte // as it came
	long      bool   // it is masked for its length, and leaves as it is read

	at    bool // the next value is the member's
	seen  int  // how often the member stands there
	value []byte
	text  bool // the value is text
}

// choose begins an object that may be spared; false: it is none.
func (j *JSON) choose(c byte) bool {
	if c != '{' || j.hidden || j.inner && len(j.stack) == 0 {
		return false
	}
	for _, n := range j.reach {
		if n.exemption != nil {
			j.choosing = &choosing{exemption: n.exemption, masked: j.same(false)}
			j.choosing.masked.watched = j.choosing
			j.state = inChoice
			return true
		}
	}
	return false
}

// same returns a writer for the value that begins, whose masked places are
// the same.
func (j *JSON) same(spared bool) *JSON {
	return &JSON{masker: j.masker, state: expectValue, inner: true, spared: spared, reach: slices.Clone(j.reach)}
}

// choiceBytes reads bytes of an object that may be spared.
func (j *JSON) choiceBytes(p []byte) (n int, err error) {
	c := j.choosing
	for n < len(p) && c.masked.state != expectEnd {
		step, err := c.masked.step(p[n:])
		if err != nil {
			return n, err
		}
		n += step
	}
	if !c.long {
		c.came = append(c.came, p[:n]...)
		c.long = len(c.came) > maxSpared
	}
	if c.masked.state == expectEnd {
		return n, j.endChoice()
	}
	if c.long {
		j.out = append(j.out, c.masked.out...)
		c.came, c.masked.out = nil, c.masked.out[:0]
	}
	return n, nil
}

// endChoice writes the object as it may be seen.
func (j *JSON) endChoice() error {
	c, chosen := j.choosing, j.choosing.masked
	if !c.long && c.seen == 1 && c.text && slices.Contains(c.exemption.Values, string(c.value)) {
		chosen = j.same(true)
		for p := c.came; len(p) > 0; {
			n, err := chosen.step(p)
			if err != nil { // it was read once already
				return err
			}
			p = p[n:]
		}
	}
	j.out = append(j.out, chosen.out...)
	j.masked += chosen.masked
	j.choosing = nil
	j.endValue()
	return nil
}

// named comes after the name of a member of the object itself.
func (c *choosing) named(name []byte) {
	if c.at = string(name) == c.exemption.Member; c.at {
		c.seen++
	}
}

// begins comes with the first byte of a value of the object itself, and reports
// whether its text is wanted.
func (c *choosing) begins(first byte) bool {
	return c.at && first == '"'
}

// is takes the text of the member.
func (c *choosing) is(text []byte) {
	c.value, c.text = append(c.value[:0], text...), true
}
