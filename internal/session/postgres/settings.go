package postgres

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

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

// A startupSetting is a run-time parameter that a client may give in its
// startup message, and the form of its value.
type startupSetting struct {
	name string // as the target spells it
	form *regexp.Regexp
}

// startupSettings is keyed by the lower-case name.
func startupSettings() map[string]startupSetting {
	duration := regexp.MustCompile(`^[0-9]{1,10}\s*(us|ms|s|min|h|d)?$`)
	list := []startupSetting{
		{"application_name", regexp.MustCompile(`^[ -~]{0,256}$`)},
		{"DateStyle", regexp.MustCompile(`(?i)^iso(\s*,\s*(mdy|dmy|ymd))?$`)},
		{"IntervalStyle", regexp.MustCompile(`(?i)^(postgres|postgres_verbose|sql_standard|iso_8601)$`)},
		{"TimeZone", regexp.MustCompile(`^[A-Za-z0-9_+\-/:]{1,64}$`)},
		{"extra_float_digits", regexp.MustCompile(`^-?[0-9]{1,2}$`)},
		{"statement_timeout", duration},
		{"lock_timeout", duration},
		{"idle_in_transaction_session_timeout", duration},
		{"default_transaction_read_only", regexp.MustCompile(`(?i)^(on|off|true|false|yes|no|0|1)$`)},
		{"default_transaction_isolation", regexp.MustCompile(`(?i)^(read committed|read uncommitted|repeatable read|serializable)$`)},
	}
	settings := make(map[string]startupSetting, len(list))
	for _, s := range list {
		settings[strings.ToLower(s.name)] = s
	}
	return settings
}

// clientSettings checks the parameters of a startup message against the allow
// list and returns those for the target. The error names the first fault.
func clientSettings(params map[string]string) (map[string]string, error) {
	allowed := startupSettings()
	settings := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(params)) {
		value, lower := params[name], strings.ToLower(name)
		switch lower {
		case "user", "database":
			continue
		case "client_encoding":
			if !isUTF8(value) {
				return nil, fmt.Errorf("client_encoding %q is not supported; use UTF8", printable(value, 40))
			}
			continue
		case "options":
			if strings.TrimSpace(value) != "" {
				return nil, fmt.Errorf("the startup parameter options (PGOPTIONS) is not supported; use SET after connecting")
			}
			continue
		case "replication":
			return nil, fmt.Errorf("replication connections are not supported")
		}
		if strings.HasPrefix(lower, protocolOption) {
			continue // answered by NegotiateProtocolVersion
		}
		setting, ok := allowed[lower]
		if !ok {
			return nil, fmt.Errorf("the startup parameter %q is not supported", printable(name, 60))
		}
		if !setting.form.MatchString(value) {
			return nil, fmt.Errorf("the value %q of the startup parameter %s is not supported", printable(value, 60), setting.name)
		}
		settings[setting.name] = value
	}
	return settings, nil
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
