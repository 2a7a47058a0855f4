package shell

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"unicode/utf8"
)

// Path returns the name under which conditions know a path that is given to a
// host: absolute, or ~ or ~/… for what is relative to the home directory. An
// error says why only the host knows what it names: it is empty, holds a NUL,
// is not UTF-8, is relative to another account's home, or has a ".." element, which leads to
// elsewhere when the element before it is a symbolic link.
func Path(name string) (string, error) {
	switch {
	case name == "":
		return "", errors.New("a path is empty")
	case strings.ContainsRune(name, 0):
		return "", errors.New("a path holds a NUL")
	case !utf8.ValidString(name):
		return "", fmt.Errorf("%q is not UTF-8", quoted(name))
	case strings.Contains("/"+name+"/", "/../"):
		return "", fmt.Errorf("%s has .. in it", quoted(name))
	case name == "~" || strings.HasPrefix(name, "~/"):
		return homed(name[1:]), nil
	case strings.HasPrefix(name, "~"):
		return "", fmt.Errorf("%s may be below another account's home", quoted(name))
	case strings.HasPrefix(name, "/"):
		return path.Clean("/" + strings.TrimLeft(name, "/")), nil
	}
	return homed(name), nil
}

func homed(rest string) string {
	if clean := path.Clean("/" + rest); clean != "/" {
		return "~" + clean
	}
	return "~"
}
