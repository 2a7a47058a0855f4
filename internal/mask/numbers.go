package mask

// Detectors of numbers that people are known by. None looks further than about
// 40 bytes ahead. The sieve asks them only where no digit, and an IBAN only
// where no letter stands before.

// escaped reports whether the byte before i ends an escape (%20, \u0020, \n in
// text that is itself escaped), so that i begins a word although a letter or a
// digit stands before it.
func (w window) escaped(i int) bool {
	a, b := w.at(i-2), w.at(i-1)
	switch {
	case w.at(i-3) == '%':
		return isHex(a) && isHex(b)
	case w.at(i-6) == '\\' && w.at(i-5) == 'u':
		return isHex(w.at(i-4)) && isHex(w.at(i-3)) && isHex(a) && isHex(b)
	}
	return a == '\\' && (b == 'n' || b == 'r' || b == 't' || b == 'b' || b == 'f')
}

// beginsWord reports whether no letter or digit stands right before i.
func (w window) beginsWord(i int) bool { return !isAlphanumeric(w.at(i-1)) || w.escaped(i) }

// card matches a payment card number: 13 to 19 digits in groups of at least
// three, with single spaces or dashes between, a known first part for the
// length, and a correct last digit (Luhn). Digits in the middle of a longer
// word or after a decimal point are none: they are hashes and fractions.
func (w window) card(i int) (end int, more bool) {
	if w.at(i-1) == '.' && isDigit(w.at(i-2)) {
		return 0, false
	}
	inWord := isLetter(w.at(i-1)) && !w.escaped(i)
	var digits [19]byte
	n, group := 0, 0
	for j := i; ; j++ {
		if w.short(j) {
			return 0, true
		}
		c := w.at(j)
		if isDigit(c) {
			if n == len(digits) {
				return end, false
			}
			digits[n] = c - '0'
			n++
			group++
			continue
		}
		if group < 3 && n < 13 {
			return end, false
		}
		if n >= 13 && !(inWord && isLetter(c)) && issued(digits[:n]) && luhn(digits[:n]) {
			end = j
		}
		if c != ' ' && c != '-' || n == len(digits) {
			return end, false
		}
		if w.short(j + 1) {
			return 0, true
		}
		if group = 0; !isDigit(w.at(j + 1)) {
			return end, false
		}
	}
}

func luhn(digits []byte) bool {
	sum := 0
	for i, d := range digits {
		v := int(d)
		if (len(digits)-i)%2 == 0 {
			if v *= 2; v > 9 {
				v -= 9
			}
		}
		sum += v
	}
	return sum%10 == 0
}

// issued reports whether an issuer hands out numbers of this beginning and
// length (ISO/IEC 7812 ranges of the large card schemes).
func issued(d []byte) bool {
	n := len(d)
	two := int(d[0])*10 + int(d[1])
	three := two*10 + int(d[2])
	four := three*10 + int(d[3])
	switch {
	case d[0] == 4: // Visa
		return n == 13 || n == 16 || n == 19
	case two >= 51 && two <= 55, four >= 2221 && four <= 2720: // Mastercard
		return n == 16
	case two == 34, two == 37: // American Express
		return n == 15
	case two == 36, two == 38, two == 39, three >= 300 && three <= 305, four == 3095: // Diners Club
		return n >= 14
	case four >= 3528 && four <= 3589: // JCB
		return n >= 16
	case two == 81, two == 82, four >= 2200 && four <= 2204, four == 9792: // UnionPay, RuPay, Mir, Troy
		return n >= 16
	}
	return d[0] == 6 || two == 50 || two >= 56 && two <= 58 // Maestro, Discover, UnionPay, RuPay
}

// ssn matches a US social security number ddd-dd-dddd that could have been
// issued: not of area 000, 666 or 900 and above, group 00 or serial 0000.
func (w window) ssn(i int) (end int, more bool) {
	const form = "ddd-dd-dddd"
	for j := range len(form) {
		if w.short(i + j) {
			return 0, true
		}
		if c := w.at(i + j); form[j] == 'd' && !isDigit(c) || form[j] == '-' && c != '-' {
			return 0, false
		}
	}
	end = i + len(form)
	if w.short(end) {
		return 0, true
	}
	text := string(w.b[i:end])
	area := text[:3]
	if isDigit(w.at(end)) || area == "000" || area == "666" || area[0] == '9' || text[4:6] == "00" || text[7:] == "0000" {
		return 0, false
	}
	return end, false
}

// phone matches telephone numbers that are written as such: + and 8 to 15
// digits (E.164) with separators, and the North American ddd-ddd-dddd,
// ddd.ddd.dddd and (ddd) ddd-dddd. Bare digits are none.
func (w window) phone(i int) (end int, more bool) {
	switch {
	case w.at(i) == '+':
		if w.at(i-1) == '+' || !w.beginsWord(i) {
			return 0, false
		}
		return w.international(i + 1)
	case w.at(i) == '(', w.beginsWord(i):
		return w.national(i)
	}
	return 0, false
}

func (w window) international(i int) (end int, more bool) {
	if w.short(i) {
		return 0, true
	}
	if c := w.at(i); c < '1' || c > '9' {
		return 0, false
	}
	digits, gap := 0, 0
	for j := i; ; j++ {
		if w.short(j) {
			return 0, true
		}
		c := w.at(j)
		if isDigit(c) {
			if digits++; digits > 15 {
				return end, false
			}
			gap = 0
			continue
		}
		if gap == 0 && digits >= 8 && !isLetter(c) {
			end = j
		}
		if gap++; gap > 2 || c != ' ' && c != '-' && c != '.' && c != '(' && c != ')' {
			return end, false
		}
	}
}

func (w window) national(i int) (end int, more bool) {
	c := cursor{w: w, i: i}
	if c.peek() == '1' {
		c.i++
		c.skip(" .-")
	}
	gaps := "-."
	if c.skip("("); c.i > i && w.at(c.i-1) == '(' {
		c.digits(3, '2')
		c.want(")")
		c.skip(" -")
		gaps = "-. "
	} else {
		c.digits(3, '2')
		c.want(gaps)
	}
	c.digits(3, '2')
	c.want(gaps)
	c.digits(4, '0')
	next := c.peek()
	if c.failed || c.more || isAlphanumeric(next) {
		return 0, c.more && !c.failed
	}
	return c.i, false
}

// A cursor reads a fixed form. After a failure it stands still; more says that
// the form ran into bytes that are not known yet.
type cursor struct {
	w            window
	i            int
	failed, more bool
}

func (c *cursor) peek() byte {
	if c.w.short(c.i) {
		c.more = true
	}
	return c.w.at(c.i)
}

func (c *cursor) in(set string) bool {
	b := c.peek()
	for i := range len(set) {
		if set[i] == b {
			return true
		}
	}
	return false
}

func (c *cursor) skip(set string) {
	if !c.failed && !c.more && c.in(set) {
		c.i++
	}
}

func (c *cursor) want(set string) {
	if c.failed || c.more {
		return
	}
	if c.in(set) {
		c.i++
	} else if !c.more {
		c.failed = true
	}
}

// digits reads n digits, the first of which is at least from.
func (c *cursor) digits(n int, from byte) {
	for ; n > 0 && !c.failed && !c.more; n-- {
		b := c.peek()
		if !c.more && (b < from || b > '9') {
			c.failed = true
			return
		}
		if !c.more {
			c.i++
		}
		from = '0'
	}
}

// ibanLengths are the countries of the IBAN registry (ISO 13616) and how many
// characters theirs have.
const ibanLengths = "AD24AE23AL28AT20AZ28BA20BE16BG22BH22BI27BR29BY28CH21CR22CY28CZ24DE22DJ27DK18DO28" +
	"EE20EG29ES24FI18FK18FO18FR27GB22GE22GI23GL18GR27GT28HN28HR21HU28IE22IL23IQ23IS26IT27JO30KW30KZ20" +
	"LB28LC32LI21LT20LU20LV21LY25MC27MD24ME22MK19MN20MR27MT31MU30NI28NL18NO15OM23PK24PL28PS29PT25QA29" +
	"RO24RS22RU33SA24SC31SD18SE24SI19SK24SM27SO23ST25SV28TL23TN24TR26UA29VA22VG24XK20YE30"

func ibanLength(a, b byte) int {
	a, b = upper(a), upper(b)
	for i := 0; i < len(ibanLengths); i += 4 {
		if ibanLengths[i] == a && ibanLengths[i+1] == b {
			return int(ibanLengths[i+2]-'0')*10 + int(ibanLengths[i+3]-'0')
		}
	}
	return 0
}

// iban matches an International Bank Account Number: country, its length, two
// check digits that are right (mod 97), in one piece or with a single space or
// dash after every four characters, in either case.
func (w window) iban(i int) (end int, more bool) {
	for j := i + 1; j <= i+3; j++ {
		if w.short(j) {
			return 0, true
		}
		if c := w.at(j); j == i+1 && !isLetter(c) || j > i+1 && !isDigit(c) {
			return 0, false
		}
	}
	length := ibanLength(w.at(i), w.at(i+1))
	if length == 0 {
		return 0, false
	}
	var text [34]byte
	n, j := 0, i
	for ; n < length; j++ {
		if w.short(j) {
			return 0, true
		}
		c := w.at(j)
		switch {
		case isAlphanumeric(c):
			text[n] = upper(c)
			n++
		case n%4 == 0 && (c == ' ' || c == '-') && isAlphanumeric(w.at(j-1)):
		default:
			return 0, false
		}
	}
	if w.short(j) {
		return 0, true
	}
	if isAlphanumeric(w.at(j)) || !mod97(text[:n]) {
		return 0, false
	}
	return j, false
}

func mod97(text []byte) bool {
	rest := 0
	for k := range text {
		if c := text[(k+4)%len(text)]; isDigit(c) {
			rest = (rest*10 + int(c-'0')) % 97
		} else {
			rest = (rest*100 + int(c-'A') + 10) % 97
		}
	}
	return rest == 1
}
