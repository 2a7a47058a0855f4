package postgres

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/sql"
	"chaperone.dev/chaperone/internal/sql/catalog"
)

// ownedSettings are fixed by the gateway for every session: they change how
// text is read or what an error shows. A client can set none of them, and RESET
// brings them back, for they go out with the startup message.
func ownedSettings(searchPath []string) map[string]string {
	quoted := make([]string, len(searchPath))
	for i, schema := range searchPath {
		quoted[i] = catalog.QuoteIdentifier(schema)
	}
	return map[string]string{
		"search_path":                 strings.Join(quoted, ", "),
		"client_encoding":             "UTF8",
		"standard_conforming_strings": "on",
		"backslash_quote":             "safe_encoding",
		"transform_null_equals":       "off",
		"array_nulls":                 "on",
		"bytea_output":                "hex",
		"xmloption":                   "content",
		"row_security":                "on",
		"check_function_bodies":       "on",
		"DateStyle":                   "ISO, MDY",
		"IntervalStyle":               "postgres",
	}
}

// clientSettings checks the parameters of a startup message and returns those
// for the target. What SET would not take is not taken here either, be it named
// by itself or in options. The error names the first fault.
func clientSettings(params map[string]string) (map[string]string, error) {
	given, err := commandLine(params["options"])
	if err != nil {
		return nil, err
	}
	for name, value := range params {
		lower := strings.ToLower(name)
		switch {
		case name == "user", name == "database", name == "options": // in this spelling alone, as at the target
		case lower == "replication":
			return nil, errors.New("replication connections are not supported")
		case strings.HasPrefix(lower, protocolOption): // answered by NegotiateProtocolVersion
		default:
			given[lower] = value // wins over options, as at the target
		}
	}
	settings := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		value := given[name]
		if name == "client_encoding" {
			if !isUTF8(value) {
				return nil, fmt.Errorf("client_encoding %q is not supported; use UTF8", access.Printable(value, 40))
			}
			continue
		}
		if err := sql.CheckSetting(name, value); err != nil {
			return nil, fmt.Errorf("the startup parameter %s = %q is not supported: %w", access.Printable(canonical(name), 60), access.Printable(value, 60), err)
		}
		if name == "timezone" && !timeZone.MatchString(value) {
			return nil, fmt.Errorf("the startup parameter TimeZone = %q is not supported: it is not the name of a time zone", access.Printable(value, 60))
		}
		if name != "standard_conforming_strings" { // it is on already
			settings[canonical(name)] = value
		}
	}
	return settings, nil
}

// timeZone is the form of a zone's name: a wrong one would be told by the target
// before there is a session to tell it in.
var timeZone = regexp.MustCompile(`^[A-Za-z0-9_+\-/:]{1,64}$`)

// canonical is a setting's name as ownedSettings has it.
func canonical(name string) string {
	switch name {
	case "datestyle":
		return "DateStyle"
	case "intervalstyle":
		return "IntervalStyle"
	case "timezone":
		return "TimeZone"
	}
	return name
}

// commandLine reads the startup parameter options (PGOPTIONS), of which only
// settings are taken: -c name=value and --name=value, split as the target does.
func commandLine(options string) (map[string]string, error) {
	settings := map[string]string{}
	words := splitOptions(options)
	for i := 0; i < len(words); i++ {
		setting, ok := strings.CutPrefix(words[i], "--")
		if !ok {
			if setting, ok = strings.CutPrefix(words[i], "-c"); ok && setting == "" && i+1 < len(words) {
				i++
				setting = words[i]
			}
		}
		name, value, hasValue := strings.Cut(setting, "=")
		if !ok || !hasValue || name == "" {
			return nil, fmt.Errorf("%q in the startup parameter options (PGOPTIONS) is not supported; write -c name=value", access.Printable(words[i], 60))
		}
		settings[strings.ToLower(strings.ReplaceAll(name, "-", "_"))] = value
	}
	return settings, nil
}

// splitOptions splits at white space; a backslash keeps the character after it.
func splitOptions(options string) []string {
	var words []string
	var word []byte
	started := false
	for i := 0; i < len(options); i++ {
		switch c := options[i]; {
		case strings.IndexByte(" \t\n\r\f\v", c) >= 0:
			if started {
				words, word, started = append(words, string(word)), nil, false
			}
			continue
		case c == '\\' && i+1 < len(options):
			i++
			word = append(word, options[i])
		case c == '\\':
		default:
			word = append(word, c)
		}
		started = true
	}
	if started {
		words = append(words, string(word))
	}
	return words
}

// protocolOption begins the names of protocol extensions.
const protocolOption = "_pq_."

func isUTF8(encoding string) bool {
	folded := strings.ToLower(strings.Map(func(r rune) rune {
		if strings.ContainsRune("'-_ ", r) {
			return -1
		}
		return r
	}, encoding))
	return folded == "utf8" || folded == "unicode"
}

// reportedParameter says whether a ParameterStatus of the target is passed on.
func reportedParameter(name string) bool {
	switch name {
	case "server_version", "server_encoding", "client_encoding", "application_name", "DateStyle", "IntervalStyle",
		"TimeZone", "integer_datetimes", "standard_conforming_strings", "default_transaction_read_only",
		"in_hot_standby", "is_superuser", "session_authorization", "scram_iterations", "search_path":
		return true
	}
	return false
}

// meaningSettings are read from the target before a statement is put before a
// reviewer: together with the text they say what it will do.
func meaningSettings() []string {
	return []string{
		"DateStyle", "IntervalStyle", "TimeZone", "default_transaction_isolation", "default_transaction_read_only",
		"extra_float_digits", "role", "row_security", "search_path", "session_authorization",
		"standard_conforming_strings", "transaction_isolation", "transaction_read_only",
	}
}
