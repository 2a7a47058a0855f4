package access

import (
	"strings"
	"testing"
)

func number(n int) *int { return &n }

func TestAttenuationRefuses(t *testing.T) {
	t.Parallel()
	orders, billing := Resource{Name: "orders", Kind: Postgres}, Resource{Name: "billing", Kind: HTTP}
	read := Action{SQL: &SQL{ReadOnly: true, Tables: []string{"public.orders"}, Reads: []string{"public.orders"}}}
	write := Action{SQL: &SQL{Tables: []string{"public.orders"}, Writes: []string{"public.orders"}}}
	ddl := Action{SQL: &SQL{DDL: true, Tables: []string{"public.orders"}, Writes: []string{"public.orders"}}}
	begin := Action{SQL: &SQL{Session: true}}
	locking := Action{SQL: &SQL{ReadOnly: true, Locks: true, Tables: []string{"public.orders"}}}
	dark := Action{SQL: &SQL{ReadOnly: true, Unknown: []string{"a function"}}}
	call := func(method, path string) Action { return Action{HTTP: &HTTPCall{Method: method, Path: path}} }
	download := Action{SSH: &SSHCall{Act: ActSFTP, Operation: OperationRead, Reads: []string{"/a"}, ReadOnly: true}}
	script := Action{SSH: &SSHCall{Act: ActExec, ReadOnly: true, Unknown: []string{"a variable"}}}
	readOnly, table := &Attenuation{ReadOnly: true}, &Attenuation{Tables: []string{"public.orders"}}
	for name, c := range map[string]struct {
		a    *Attenuation
		on   Resource
		do   Action
		want string // "" is allowed
	}{
		"none":                         {nil, orders, write, ""},
		"empty":                        {&Attenuation{}, orders, write, ""},
		"its resource":                 {&Attenuation{Resources: []string{"orders"}}, orders, write, ""},
		"another resource":             {&Attenuation{Resources: []string{"billing"}}, orders, read, "resources"},
		"a read":                       {readOnly, orders, read, ""},
		"BEGIN":                        {readOnly, orders, begin, ""},
		"a write":                      {readOnly, orders, write, "reading only"},
		"DDL":                          {readOnly, orders, ddl, "reading only"},
		"a lock":                       {readOnly, orders, locking, "reading only"},
		"an unknown statement":         {readOnly, orders, dark, "not known"},
		"no action":                    {readOnly, orders, Action{}, "nothing is known"},
		"its table":                    {table, orders, write, ""},
		"its schema":                   {&Attenuation{Tables: []string{"public.*"}}, orders, read, ""},
		"a schema that begins so":      {&Attenuation{Tables: []string{"pub.*"}}, orders, read, "tables"},
		"another table":                {&Attenuation{Tables: []string{"public.customers"}}, orders, read, "tables"},
		"the definition of a table":    {table, orders, ddl, "definition"},
		"an unknown table":             {table, orders, dark, "not known"},
		"a file read":                  {readOnly, orders, download, ""},
		"a script":                     {readOnly, orders, script, "reading only"},
		"a shell":                      {readOnly, orders, Action{SSH: &SSHCall{Act: ActShell}}, "reading only"},
		"a table that only Reads name": {table, orders, Action{SQL: &SQL{ReadOnly: true, Reads: []string{"public.x"}}}, "tables"},
		"GET":                          {readOnly, billing, call("GET", "/x"), ""},
		"POST":                         {readOnly, billing, call("POST", "/x"), "reading only"},
		"an unknown method":            {readOnly, billing, call("QUERY", "/x"), "reading only"},
		"its method":                   {&Attenuation{Methods: []string{"POST"}}, billing, call("POST", "/x"), ""},
		"another method":               {&Attenuation{Methods: []string{"POST"}}, billing, call("PUT", "/x"), "methods"},
		"its path":                     {&Attenuation{Paths: []string{"/a"}}, billing, call("GET", "/a"), ""},
		"below its path":               {&Attenuation{Paths: []string{"/a/"}}, billing, call("GET", "/a/b"), ""},
		"a path that begins so":        {&Attenuation{Paths: []string{"/a"}}, billing, call("GET", "/ab"), "paths"},
		"a list of pods":               {readOnly, billing, Action{K8s: &K8s{Method: "GET", ReadOnly: true}}, ""},
		"exec by GET":                  {readOnly, billing, Action{K8s: &K8s{Method: "GET"}}, "reading only"},
		"asking what one may do":       {readOnly, billing, Action{K8s: &K8s{Method: "POST", ReadOnly: true}}, ""},
		"another namespace":            {&Attenuation{Paths: []string{"/api/v1/namespaces/shop"}}, billing, Action{K8s: &K8s{Path: "/api/v1/namespaces/prod/pods"}}, "paths"},
	} {
		got := c.a.Refuses(c.on, c.do)
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestOutOfBoundsNamesTheHop(t *testing.T) {
	t.Parallel()
	p := Principal{Chain: []Hop{{}, {Attenuation: &Attenuation{Resources: []string{"orders"}, Rows: 10}}, {Attenuation: &Attenuation{ReadOnly: true, Rows: 20}}}}
	update := Action{SQL: &SQL{Writes: []string{"public.t"}}}
	for name, c := range map[string]struct {
		on  string
		do  Action
		hop int
	}{
		"resource alone":     {"orders", Action{}, 0},
		"another, alone":     {"billing", Action{}, 2},
		"a write":            {"orders", update, 3},
		"a write, elsewhere": {"billing", update, 2},
	} {
		if hop, why := p.OutOfBounds(Resource{Name: c.on}, c.do); hop != c.hop || (hop == 0) != (why == "") {
			t.Errorf("%s: hop %d %q, want %d", name, hop, why, c.hop)
		}
	}
	p.Chain[0].Actor, p.Chain[1].Actor, p.Chain[2].Actor = "a", "b", "c"
	if p.Through() != "a > b > c" {
		t.Errorf("through %q", p.Through())
	}
	if p.Rows() != 10 || (Principal{}).Rows() != 0 {
		t.Errorf("rows %d", p.Rows())
	}
}

func TestAttenuationWithin(t *testing.T) {
	t.Parallel()
	outer := &Attenuation{Resources: []string{"orders"}, Methods: []string{"GET"}, Paths: []string{"/a"}, Tables: []string{"public.*"}, Rows: 5, Depth: number(1)}
	for name, c := range map[string]struct {
		inner Attenuation
		want  string
	}{
		"nothing asked":      {Attenuation{}, ""},
		"the same":           {Attenuation{Resources: []string{"orders"}, Methods: []string{"GET"}, Paths: []string{"/a/b"}, Tables: []string{"public.t"}, Rows: 5, Depth: number(0)}, ""},
		"another resource":   {Attenuation{Resources: []string{"orders", "billing"}}, "resources"},
		"another method":     {Attenuation{Methods: []string{"POST"}}, "methods"},
		"a wider path":       {Attenuation{Paths: []string{"/"}}, "paths"},
		"another table":      {Attenuation{Tables: []string{"secret.t"}}, "tables"},
		"more rows":          {Attenuation{Rows: 6}, "rows"},
		"as many hops again": {Attenuation{Depth: number(1)}, "depth"},
	} {
		err := c.inner.Within(outer)
		if (err == nil) != (c.want == "") || err != nil && err.Error() != c.want {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if err := c.inner.Within(nil); err != nil {
			t.Errorf("%s within nothing: %v", name, err)
		}
	}
}

func TestAttenuationForm(t *testing.T) {
	t.Parallel()
	good := Attenuation{Resources: []string{"orders"}, Methods: []string{"GET"}, Paths: []string{"/a"}, Tables: []string{"public.t", "public.*"}, Rows: 1, Depth: number(0)}
	if err := good.Check(); err != nil || !strings.Contains(good.Text(), "resources orders") || !strings.Contains(good.Text(), "0 further hops") {
		t.Errorf("%v, %q", err, good.Text())
	}
	for name, a := range map[string]Attenuation{
		"small method": {Methods: []string{"get"}}, "relative path": {Paths: []string{"a"}}, "encoded path": {Paths: []string{"/%61"}},
		"dots": {Paths: []string{"/a/.."}}, "bare table": {Tables: []string{"t"}}, "empty": {Resources: []string{""}},
		"control": {Resources: []string{"a\x1b"}}, "many": {Resources: make([]string, 65)}, "rows": {Rows: -1}, "depth": {Depth: number(-1)},
	} {
		if a.Check() == nil {
			t.Errorf("%s is taken", name)
		}
	}
}
