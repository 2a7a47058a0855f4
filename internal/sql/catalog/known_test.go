package catalog

import (
	"errors"
	"testing"
)

// A server whose grammar and functions nobody looked at is refused, whatever
// version it claims.
func TestKnownServers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		banner string
		number int
		known  bool
	}{
		{"PostgreSQL 16.14 on x86_64-pc-linux-gnu, compiled by gcc", 160014, true},
		{"PostgreSQL 17.2 (Debian 17.2-1.pgdg120+1) on aarch64", 170002, true},
		{"PostgreSQL 18.4 on x86_64-apple-darwin", 180004, true},
		{"PostgreSQL 15.8 on x86_64-pc-linux-gnu", 150008, false},
		{"PostgreSQL 19devel on x86_64-pc-linux-gnu", 190000, false},
		{"PostgreSQL 12.12 (Greenplum Database 7.0.0 build commit:0a7a3566) on x86_64", 120012, false},
		{"PostgreSQL 16.0 (Greenplum Database 9.0.0) on x86_64", 160000, false},
		{"PostgreSQL 8.0.2 on i686-pc-linux-gnu, compiled by GCC gcc (GCC) 3.4.2, Redshift 1.0.48805", 80002, false},
		{"CockroachDB CCL v23.1.11 (x86_64-pc-linux-gnu)", 160000, false},
		{"PostgreSQL 16.2-YB-2.25.0.0-b0 on x86_64-pc-linux-gnu", 160002, false},
		{"EnterpriseDB 16.1.0 on x86_64-pc-linux-gnu", 160001, false},
		{"PostgreSQL 16.3 (EnterpriseDB Advanced Server 16.3.0)", 160003, false},
		{"PostgreSQL", 160003, false},
		{"PostgreSQL unknown", 160003, false},
		{"", 160003, false},
	} {
		if err := known(c.banner, c.number); (err == nil) != c.known || err != nil && !errors.Is(err, ErrUnknownServer) {
			t.Errorf("%q: %v", c.banner, err)
		}
	}
}
