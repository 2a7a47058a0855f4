package main

import (
	"encoding/json"
	"io"
	"os"
)

// colours reports whether w is a terminal whose user has not said NO_COLOR.
func colours(w io.Writer) bool {
	return isTerminal(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// Colours of a terminal.
const (
	red   = "31"
	green = "32"
)

// painter returns a function that colours text, or leaves it as it is.
func painter(colour bool) func(code, text string) string {
	return func(code, text string) string {
		if !colour {
			return text
		}
		return "\x1b[" + code + "m" + text + "\x1b[0m"
	}
}

func indentJSON(v any) string {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return ""
	}
	return string(b)
}
