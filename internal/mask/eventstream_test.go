package mask_test

import (
	"strings"
	"testing"

	"chaperone.dev/chaperone/internal/mask"
)

func TestEventStream(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		masks    []string
		in, want string
	}{
		"json":                {[]string{"/ssn"}, "data: {\"ssn\":1,\"b\":2}\n\n", "data: {\"ssn\":\"***\",\"b\":2}\n\n"},
		"unchanged":           {[]string{"/ssn"}, "event: a\nid: 1\nretry: 5\ndata:{\"b\":2}\n\n", "event: a\nid: 1\nretry: 5\ndata:{\"b\":2}\n\n"},
		"several lines":       {[]string{"/ssn"}, "data: {\ndata: \"ssn\":\ndata:  [1,\ndata:  2]}\n\n", "data: {\ndata: \"ssn\":\ndata:  \"***\"}\n\n"},
		"order kept":          {[]string{"/a"}, "event: x\ndata: {\"a\":1}\nid: 7\n\n", "event: x\ndata: {\"a\":\"***\"}\nid: 7\n\n"},
		"carriage returns":    {[]string{"/a"}, "event: x\rdata: {\"a\":1}\r\rdata: {}\r\r", "event: x\rdata: {\"a\":\"***\"}\r\rdata: {}\r\r"},
		"both":                {[]string{"/a"}, "event: x\r\ndata: {\"a\":1}\r\n\r\ndata: 1\r\n\r\n", "event: x\r\ndata: {\"a\":\"***\"}\r\n\r\ndata: 1\r\n\r\n"},
		"no end":              {[]string{"/a"}, "data: {\"a\":1}", "data: {\"a\":\"***\"}\n"},
		"no blank line":       {[]string{"/a"}, "data: {\"a\":1}\n", "data: {\"a\":\"***\"}\n"},
		"done":                {[]string{"/a"}, "data: [DONE]\n\n", "data: [DONE]\n\n"},
		"comment":             {[]string{"/a"}, ": {\"a\":1}\n\n", ":\n\n"},
		"comment, no fields":  {[]string{"SSN"}, ": ping 123-45-6789\n\n", ": ping ***\n\n"},
		"text":                {[]string{"SSN"}, "data: is 123-45-6789\ndata: so\n\n", "data: is ***\ndata: so\n\n"},
		"key over lines":      {[]string{"PRIVATE_KEY"}, "data: -----BEGIN PRIVATE KEY-----\ndata: MII\ndata: -----END PRIVATE KEY-----\n\n", "data: ***\n\n"},
		"escaped in json":     {[]string{"SSN"}, "data: [\"\\u003123-45-6789\"]\n\n", "data: [\"***\"]\n\n"},
		"detector in a field": {[]string{"SSN"}, "id: 123-45-6789\n\n", "id: ***\n\n"},
		"empty data":          {[]string{"/a"}, "data\n\ndata:\n\n\n", "data\n\ndata:\n\n\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := compile(t, c.masks...)
			got, err := everySplit(t, func() mask.Writer { return m.NewEventStream() }, []byte(c.in))
			if err != nil || got != c.want {
				t.Errorf("got %q, %v\nwant %q", got, err, c.want)
			}
		})
	}
}

func TestEventStreamRefusals(t *testing.T) {
	t.Parallel()
	m := compile(t, "/ssn")
	for name, in := range map[string]string{
		"text":            "data: hello\n\n",
		"cut json":        "data: {\"ssn\":\n\ndata: 1}\n\n",
		"two documents":   "data: {}{}\n\n",
		"byte order mark": "\uFEFFdata: {}\n\n",
		"unknown field":   "payload: {\"ssn\":1}\n\n",
		"leading space":   " data: {\"ssn\":1}\n\n",
		"not UTF-8":       "event: \xff\n\n",
		"too long":        "data: \"" + strings.Repeat("x", 1<<20) + "\"\n\n",
		"no end of line":  strings.Repeat("x", 1<<20+1),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got, err := everySplit(t, func() mask.Writer { return m.NewEventStream() }, []byte(in)); err == nil {
				t.Errorf("accepted: %.100q", got)
			}
		})
	}
}

func TestEventStreamIsNotDelayed(t *testing.T) {
	t.Parallel()
	w := compile(t, "/a").NewEventStream()
	for _, c := range []struct{ in, now string }{
		{"data: {\"a\"", ""}, {":1}\n", ""}, {"\n", "data: {\"a\":\"***\"}\n\n"}, {"data: 1\r\n\r", "data: 1\r\n\r"}, {"\n", "\n"},
	} {
		if out, err := w.Write([]byte(c.in)); err != nil || string(out) != c.now {
			t.Errorf("Write(%q) = %q, %v; want %q", c.in, out, err, c.now)
		}
	}
	if w.Masked() != 1 {
		t.Errorf("Masked = %d", w.Masked())
	}
}
