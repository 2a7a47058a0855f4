package tapsink

import (
	"fmt"
	"mime"
	"net/http"
	"strings"

	"chaperone.dev/chaperone/internal/mask"
)

// A refusal says why a response cannot be masked, to the client too.
type refusal string

func (r refusal) Error() string { return string(r) }

// writerFor chooses how the body of a response is masked, nil when there is
// nothing to mask. What it cannot choose for it refuses: with masks to apply, no
// body passes that is not read to its last byte.
func writerFor(m *mask.Masker, status int, hs headers, body bool) (mask.Writer, error) {
	switch {
	case m.Empty():
		return nil, nil
	case m.Columns():
		return nil, refusal("columns are masked, and this is no database")
	case status == http.StatusSwitchingProtocols:
		return nil, refusal("it leaves HTTP for another protocol")
	case !body:
		return nil, nil
	}
	for _, value := range hs.all("content-encoding") {
		if !strings.EqualFold(strings.TrimSpace(value), "identity") {
			return nil, refusal("it is compressed or otherwise encoded although that was not asked for")
		}
	}
	if status == http.StatusPartialContent || len(hs.all("content-range")) > 0 {
		return nil, refusal("it is a part of a document")
	}
	types := hs.all("content-type")
	if len(types) != 1 {
		return nil, refusal("it does not have one content type")
	}
	media, parameters, err := mime.ParseMediaType(types[0])
	if err != nil {
		return nil, refusal("its content type cannot be read")
	}
	return writerOf(m, media, strings.ToLower(parameters["charset"]))
}

func writerOf(m *mask.Masker, media, charset string) (mask.Writer, error) {
	utf8 := charset == "" || charset == "utf-8" || charset == "utf8" || charset == "us-ascii"
	if _, subtype, _ := strings.Cut(media, "/"); utf8 {
		switch {
		case media == "application/json", media == "text/json", strings.HasPrefix(media, "application/") && strings.HasSuffix(subtype, "+json"):
			return m.NewJSON(), nil
		case strings.HasSuffix(subtype, "ndjson"), strings.HasSuffix(subtype, "jsonl"), strings.HasSuffix(subtype, "jsonlines"):
			return m.NewJSONLines(), nil
		case media == "text/event-stream":
			return m.NewEventStream(), nil
		}
	}
	switch {
	case !strings.HasPrefix(media, "text/") || media == "text/json" || media == "text/event-stream":
		return nil, refusal(fmt.Sprintf("content of type %.80s cannot be searched", media))
	case m.Fields():
		return nil, refusal(fmt.Sprintf("fields of JSON are masked, and it is %.80s", media))
	case !utf8 && !asciiBased(charset):
		return nil, refusal(fmt.Sprintf("character set %.40q cannot be searched", charset))
	}
	return m.NewText(), nil
}

// asciiBased reports whether in a character set the bytes of ASCII mean ASCII
// everywhere, so that the detectors read right what they look for.
func asciiBased(charset string) bool {
	return strings.HasPrefix(charset, "iso-8859-") || strings.HasPrefix(charset, "windows-125") ||
		charset == "latin1" || charset == "ascii" || charset == "koi8-r" || charset == "koi8-u"
}
