package postgres

import (
	"maps"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/sql"
)

// Claims of the token become settings of the session (app.tenant, …), so that
// the database's own row security serves each subagent. They go out with the
// startup message, which RESET and DISCARD go back to, over whatever ALTER ROLE
// or ALTER DATABASE say. SET of them is refused as of everything that is not on
// the list of settable ones, and a statement of which the gateway does not know
// all that it calls is refused too: a function could call set_config.

// withClaims adds the principal's claims to the settings that the client asked
// for, which cannot be among them. Who lacks one gets no session: row security
// could take "nothing" for "everything".
func (s *session) withClaims(asked map[string]string) (map[string]string, *refusal) {
	settings := maps.Clone(asked)
	if settings == nil {
		settings = map[string]string{}
	}
	for setting, attribute := range s.resource.Claims {
		value := s.info.Principal.Attribute(attribute)
		if value == "" {
			d := s.newDenial(access.DeniedByRule, "your token has no "+attribute+", which "+s.resource.Access.Name+" tells rows apart by")
			d.Hint = "use a token that names it"
			return nil, refuse(d, "no "+attribute+" for "+setting)
		}
		settings[setting] = value
	}
	return settings, nil
}

// keepsClaims refuses what could change the settings that the gateway has set.
func (s *session) keepsClaims(st *statement, v *verdict) *refusal {
	unknown := st.judged.Action.Unknown
	if len(s.resource.Claims) == 0 || len(unknown) == 0 {
		return nil
	}
	return s.judgeRefused(v, &sql.Refusal{Reason: access.Unreadable,
		Message: "the rows of " + s.resource.Access.Name + " are told apart by settings of the gateway, which this could change: " + unknown[0],
		Hint:    "use functions that the gateway knows; its operators can list others of this database under functions"})
}
