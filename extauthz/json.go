package extauthz

import (
	"mime"
	"strings"
)

// isJSON reports whether exactly one Content-Type stands there and says JSON in
// UTF-8.
func isJSON(contentType []string) bool {
	if len(contentType) != 1 {
		return false
	}
	t, parameters, err := mime.ParseMediaType(contentType[0])
	if err != nil {
		return false
	}
	if charset, ok := parameters["charset"]; ok && !strings.EqualFold(charset, "utf-8") {
		return false
	}
	return t == "application/json" || strings.HasPrefix(t, "application/") && strings.HasSuffix(t, "+json")
}
