package record

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"chaperone.dev/chaperone/internal/access"
)

// sshSession has a command, a file, and a shell in a terminal.
func sshSession() []access.Event {
	at := func(ms int) time.Time { return noon.Add(time.Duration(ms) * time.Millisecond) }
	asked := func(ms int, request string, call access.SSHCall) access.Event {
		ev := ask("s3", request)
		ev.Time = at(ms)
		call.User = "deploy"
		ev.Decided.Request.Action = access.Action{SSH: &call}
		return ev
	}
	stream := func(ms int, request string, c access.StreamChunk) access.Event {
		return access.Event{Time: at(ms), Session: "s3", Request: request, Stream: &c}
	}
	end := func(ms int, request string, e access.Ended) access.Event {
		return access.Event{Time: at(ms), Session: "s3", Request: request, Ended: &e}
	}
	return []access.Event{
		opened("s3", "ann@example.com", "build-1", noon),
		asked(0, "req_1", access.SSHCall{Act: access.ActExec, Command: "make $x", Unknown: []string{"$x is worked out on the host"}}),
		stream(10, "req_1", access.StreamChunk{Name: access.Stdin, Text: "yes\n"}),
		stream(20, "req_1", access.StreamChunk{Name: access.Stdout, Text: "built\n\x1b[31mred\x1b[m\n"}),
		stream(30, "req_1", access.StreamChunk{Name: access.Stderr, Text: "a warning\n"}),
		stream(40, "req_1", access.StreamChunk{Name: access.Stdout, Omitted: 4096}),
		end(50, "req_1", access.Ended{Tag: "exit 2", Bytes: 20, Duration: time.Second, Streams: []access.StreamSum{{Name: access.Stdin, Bytes: 4, SHA256: "ab12"}}}),
		asked(60, "req_2", access.SSHCall{Act: access.ActSFTP, Operation: access.OperationRead, Command: `read "/srv/a/../b"`, UnknownPaths: []string{"/srv/a/../b has .. in it"}}),
		end(70, "req_2", access.Ended{Tag: "status 0", Streams: []access.StreamSum{{Name: access.Stdout, Bytes: 9, SHA256: "cd34"}}}),
		asked(100, "req_3", access.SSHCall{Act: access.ActShell, Terminal: true}),
		stream(110, "req_3", access.StreamChunk{Name: access.Stdout, Columns: 80, Rows: 24, Term: "xterm"}),
		stream(200, "req_3", access.StreamChunk{Name: access.Stdout, Text: "\x1b]0;title\x07\x1b[1m$ \x1b[m"}),
		stream(1200, "req_3", access.StreamChunk{Name: access.Stdin, Text: "ls\r"}),
		stream(1250, "req_3", access.StreamChunk{Name: access.Stdout, Text: "ls\r\n"}),
		asked(1300, "req_4", access.SSHCall{Act: access.ActForward, Operation: "direct-tcpip", Host: "db", Port: 5432}),
		stream(1350, "req_3", access.StreamChunk{Name: access.Stdout, Columns: 100, Rows: 30}),
		stream(61250, "req_3", access.StreamChunk{Name: access.Stdout, Text: "a  b <&>\r\n$ \x1b[6n"}),
		stream(61300, "req_3", access.StreamChunk{Name: access.Stdout, Bytes: []byte("\xffend")}),
		end(61400, "req_3", access.Ended{Tag: "exit 0"}),
		closed("s3", at(61500)),
	}
}

func TestAsciicast(t *testing.T) {
	t.Parallel()
	const title = `"title":"ann@example.com through agent in nightly on build-1"`
	for name, c := range map[string]struct {
		cast Asciicast
		want string
	}{
		"version 3": {Asciicast{Version: 3}, `{"version":3,"term":{"cols":80,"rows":24,"type":"xterm"},"timestamp":` + stampOf(noon) + `,` + title + `}
[0.09,"o","\u001b]0;title\u0007\u001b[1m$ \u001b[m"]
[1.05,"o","ls\r\n"]
[0.1,"r","100x30"]
[59.9,"o","a  b <&>\r\n$ \u001b[6n"]
[0.05,"o","�end"]
[0.1,"x","0"]
`},
		"version 2 of one act": {Asciicast{Version: 2, Request: "req_3"}, `{"version":2,"width":80,"height":24,"timestamp":` + stampOf(noon) + `,` + title + `,"env":{"TERM":"xterm"}}
[0.09,"o","\u001b]0;title\u0007\u001b[1m$ \u001b[m"]
[1.14,"o","ls\r\n"]
[1.24,"r","100x30"]
[61.14,"o","a  b <&>\r\n$ \u001b[6n"]
[61.19,"o","�end"]
`},
		"inert, and no more than so much": {Asciicast{Version: 3, Inert: true, Most: 20}, `{"version":3,"term":{"cols":80,"rows":24,"type":"xterm"},"timestamp":` + stampOf(noon) + `,` + title + `}
[0.09,"o","\u001b[1m$ \u001b[m"]
[1.05,"o","ls\r\n"]
[0.1,"r","100x30"]
[59.9,"o","\r\n` + strings.ReplaceAll(restored, "\x1b", `\u001b`) + `[the recording goes on: chaperone sessions export has all of it]\r\n"]
`},
	} {
		var out bytes.Buffer
		if err := c.cast.Write(&out, each(sshSession()...)); err != nil || out.String() != c.want {
			t.Errorf("%s: %v\n%s\nwant\n%s", name, err, out.String(), c.want)
		}
		for l := range strings.Lines(out.String()) {
			if !json.Valid([]byte(l)) {
				t.Errorf("%s: not JSON: %s", name, l)
			}
		}
	}
	for name, c := range map[string]struct {
		cast Asciicast
		evs  []access.Event
	}{"an act without one": {Asciicast{Version: 3, Request: "req_1"}, sshSession()}, "another protocol": {Asciicast{Version: 3}, sqlSession()}} {
		var out bytes.Buffer
		if err := c.cast.Write(&out, each(c.evs...)); !errors.Is(err, ErrNoTerminal) || out.Len() > 0 {
			t.Errorf("%s: %v, %q", name, err, out.String())
		}
	}
}

// TestAsciicastOfAPod: the terminal of kubectl exec is exported like another.
func TestAsciicastOfAPod(t *testing.T) {
	t.Parallel()
	evs := sshSession()
	for i := range evs {
		if d := evs[i].Decided; d != nil && evs[i].Request == "req_3" {
			d.Request.Action = access.Action{K8s: &access.K8s{Verb: "get", Resource: "pods", Subresource: "exec", Command: []string{"sh", "-c", "id"}, Terminal: true}}
		}
	}
	var out bytes.Buffer
	if err := (Asciicast{Version: 3}).Write(&out, each(evs...)); err != nil || !strings.Contains(out.String(), `,"command":"sh -c id"}`) || !strings.Contains(out.String(), `"r","100x30"`) {
		t.Errorf("%v\n%s", err, out.String())
	}
}

func stampOf(t time.Time) string {
	b, _ := json.Marshal(t.Unix())
	return string(b)
}

func TestScreen(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"plain ä 漢\r\n\ttab":                                                           "plain ä 漢\r\n\ttab",
		"\x1b[1;31mred\x1b[0m\x1b[2J\x1b[3;4Hx\x1b[K":                                  "\x1b[1;31mred\x1b[0m\x1b[2J\x1b[3;4Hx\x1b[K",
		"\x1b[?1049h\x1b[?25lvi\x1b[?25h\x1b[?1049l":                                   "\x1b[?1049h\x1b[?25lvi\x1b[?25h\x1b[?1049l",
		"\x1b7\x1b8\x1bM\x1b(0qqq\x1b(B\x1b[2;5r\b":                                    "\x1b7\x1b8\x1bM\x1b(0qqq\x1b(B\x1b[2;5r\b",
		"a title\x1b]0;owned\x07.":                                                     "a title.",
		"the clipboard\x1b]52;c;cm0gLXJm\x1b\\.":                                       "the clipboard.",
		"a link\x1b]8;;http://evil\x1b\\x\x1b]8;;\x1b\\":                               "a linkx",
		"asking \x1b[c\x1b[6n\x1b[>c\x1b[5n\x1b[?1;2S\x1bZ\x05.":                       "asking .",
		"a device string\x1bP+q544e\x1b\\\x1b_x\x1b\\\x1b^y\x1b\\\x1bXz\x1b\\.":        "a device string.",
		"keys and mouse\x1b[?1000h\x1b[?2004h\x1b[?1h\x1b=\x1b[>4;2m\x1b[?1049;2004h.": "keys and mouse.",
		"windows\x1b[8;1;1t\x1b[4i\x1b[!p\x1b[1\"q\x1bc.":                              "windows.",
		"repeat a\x1b[999999999b.":                                                     "repeat a.",
		"C1 \u009b31m\u009d0;x\u009c\x9b31m.":                                          "C1 31m0;x\ufffd31m.",
		"bells\a\x0e\x0f\x00\x7f.":                                                     "bells.",
		"\x1b[" + strings.Repeat("1;", 40) + "m.":                                      ".",
	} {
		whole := &Screen{}
		if got := string(whole.Show([]byte(in))); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
		for at := range len(in) {
			s := &Screen{}
			if got := string(s.Show([]byte(in[:at]))) + string(s.Show([]byte(in[at:]))); got != want {
				t.Errorf("%q split at %d: got %q, want %q", in, at, got, want)
			}
		}
	}
}

// FuzzScreen: what is shown holds nothing but text and sequences that draw.
func FuzzScreen(f *testing.F) {
	f.Add([]byte("a\x1b[31mb\x1b]0;t\x07\u009bc\xff"), uint8(3))
	f.Add([]byte("\x1b[\x1b[3\x18\x1b"), uint8(1))
	f.Fuzz(func(t *testing.T, in []byte, cut uint8) {
		s := &Screen{}
		at := min(int(cut), len(in))
		shown := string(s.Show(in[:at])) + string(s.Show(in[at:]))
		again := &Screen{}
		if got := string(again.Show([]byte(shown))); got != shown {
			t.Fatalf("%q is shown as %q, which is shown as %q", in, shown, got)
		}
		if strings.ContainsAny(shown, "\a\x00\x05\x7f\u009b\u009d") || strings.Contains(shown, "\x1b]") || strings.Contains(shown, "\x1bP") {
			t.Fatalf("%q is shown as %q", in, shown)
		}
	})
}
