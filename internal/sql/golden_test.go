package sql

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	pg "github.com/pganalyze/pg_query_go/v6"
	"google.golang.org/protobuf/reflect/protoreflect"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/sql/parser"
)

var update = flag.Bool("update", false, "write docs/sql-forms.md anew")

const formsPage = "../../docs/sql-forms.md"

// A servedForm is a form with an example of it on a table with masked columns,
// which is rewritten, served as it is, or refused.
type servedForm struct {
	node protoreflect.Name // of a statement; "" for a form within one
	name string
	text string
	want string // rewritten, as it is, or a part of the refusal's message
}

// served are the statements of the grammar that run, each with what is to be
// known of it where columns are masked.
var served = []servedForm{
	{"SelectStmt", "SELECT", "select id, ssn from customers", "rewritten"},
	{"SelectStmt", "VALUES", "values ((select ssn from customers where id = 1))", "rewritten"},
	{"SelectStmt", "TABLE", "table customers", "rewritten"},
	{"SelectStmt", "SELECT INTO", "select id into copied from customers", "SELECT INTO"},
	{"InsertStmt", "INSERT", "insert into customers (id, email) values (1, 'x') on conflict (id) do nothing returning id", "as it is"},
	{"UpdateStmt", "UPDATE", "update customers set email = 'x' where id = 1 returning id, name", "as it is"},
	{"UpdateStmt", "UPDATE of a masked column", "update customers set ssn = 'x' where id = 1", "cannot be written"},
	{"DeleteStmt", "DELETE", "delete from customers where id = 1 returning name", "as it is"},
	{"DeleteStmt", "DELETE by a masked column", "delete from customers where ssn = 'x'", "cannot take part in DELETE"},
	{"MergeStmt", "MERGE", "merge into orders o using customers c on o.customer_id = c.id when matched then update set total = 1", "rewritten"},
	{"ExplainStmt", "EXPLAIN, also with ANALYZE", "explain (analyze) select ssn from customers", "rewritten"},
	{"DeclareCursorStmt", "DECLARE CURSOR", "declare c cursor for select id, ssn from customers", "rewritten"},
	{"FetchStmt", "FETCH, MOVE", "fetch 10 from c", "as it is"},
	{"ClosePortalStmt", "CLOSE", "close c", "as it is"},
	{"PrepareStmt", "PREPARE", "prepare p as select ssn from customers where id = $1", "rewritten"},
	{"ExecuteStmt", "EXECUTE", "execute p (1)", "as it is"},
	{"DeallocateStmt", "DEALLOCATE", "deallocate p", "as it is"},
	{"CopyStmt", "COPY of a query to the client", "copy (select id, ssn from customers) to stdout", "rewritten"},
	{"CopyStmt", "COPY of a table to the client", "copy customers to stdout csv", "rewritten"},
	{"CopyStmt", "COPY from the client", "copy customers (id, email) from stdin", "as it is"},
	{"CopyStmt", "COPY to or from files and programs", "copy customers to '/tmp/customers'", "file or a program"},
	{"TransactionStmt", "BEGIN, COMMIT, ROLLBACK, SAVEPOINT and the like", "begin isolation level serializable", "as it is"},
	{"TransactionStmt", "two-phase commit", "prepare transaction 'x'", "two-phase"},
	{"VariableSetStmt", "SET, RESET of harmless settings", "set timezone = 'UTC'", "as it is"},
	{"VariableSetStmt", "SET of any other setting", "set search_path = x", "search_path"},
	{"VariableShowStmt", "SHOW", "show timezone", "as it is"},
	{"DiscardStmt", "DISCARD", "discard all", "as it is"},
	{"UnlistenStmt", "UNLISTEN", "unlisten *", "as it is"},
	{"ListenStmt", "LISTEN", "listen jobs", "as it is"},
	{"NotifyStmt", "NOTIFY", "notify jobs, 'payload'", "as it is"},
}

// within are forms of queries that a subquery in place of a table could break.
var within = []servedForm{
	{"", "joins, subqueries, WITH, set operations, windows, aggregates", "with w as (select id, ssn from customers) select max(w.ssn) from w join orders o using (id) union all select name from customers", "rewritten"},
	{"", "whole rows", "select c, row_to_json(c) from customers c", "rewritten"},
	{"", "alias column lists", "select d from customers c (a, b, c, d)", "rewritten"},
	{"", "`ONLY t`, `ONLY (t)`, `t *`", "select ssn from only (customers)", "rewritten"},
	{"", "partitions and children by their own names", "select secret from events_1", "rewritten"},
	{"", "`TABLESAMPLE` with numbers", "select ssn from customers tablesample system (10) repeatable (1)", "rewritten"},
	{"", "`TABLESAMPLE` with expressions", "select ssn from customers tablesample system ($1)", "takes a number only"},
	{"", "system columns by name", "select ctid, ssn from customers", "rewritten"},
	{"", "system columns beside `*`", "select ctid, * from customers", "cannot be read beside *"},
	{"", "`FOR UPDATE`, `FOR SHARE` and the like", "select id, ssn from customers for update skip locked", "rewritten"},
	{"", "`WHERE CURRENT OF`", "update customers set email = 'x' where current of c", "as it is"},
	{"", "`GROUP BY` of the key alone", "select id, name, ssn, count(*) from customers group by id", "rewritten"},
	{"", "the same with ROLLUP, CUBE, GROUPING SETS or the whole row", "select id, name from customers group by rollup (id)", "must appear in GROUP BY itself"},
	{"", "views and materialized views", "select * from dirty", "rewritten"},
	{"", "views whose rows a masked column decides on", "select id from chosen", "which is masked, in WHERE"},
	{"", "a partition by its own name, where the partition key is masked", "select id from cards_4", "would tell of public.cards.card"},
	{"", "`tableoid` and EXPLAIN, where the partition key is masked", "explain select id from cards", "would tell of public.cards.card"},
	{"", "changes that reach rows with triggers by a cascading reference", "delete from tenants where id = 1", "whose trigger say"},
	{"", "foreign tables", "select id from remote", "may hold masked values"},
	{"", "a masked column in WHERE, ON, GROUP BY, ORDER BY, DISTINCT, a comparison and the like", "select id from customers where ssn = 'x'", "cannot be used in WHERE"},
	{"", "statistics of the planner and other catalogs that hold values", "select most_common_vals from pg_stats", "may hold masked values"},
}

// TestGoldenForms tries each form, sees that every statement of the grammar is
// either among those that run or refused by name, and that the page says so.
func TestGoldenForms(t *testing.T) {
	t.Parallel()
	var page strings.Builder
	page.WriteString(formsHead)
	tryForms(t, &page, "| Statement | Example | Where columns are masked |", served)
	page.WriteString("\n## Within them\n\n")
	tryForms(t, &page, "| Form | Example | Where columns are masked |", within)
	page.WriteString("\n## Refused by name\n\n| Form | Write instead |\n|---|---|\n")
	refused, definitions := otherStatements(t)
	for _, line := range refused {
		page.WriteString(line)
	}
	page.WriteString("\n## Definitions and administration\n\nJudged, so that policy may allow and deny them by name (`sql.ddl`, `sql.command`); refused where columns are masked:\n" +
		strings.Join(definitions, ", ") + ".\n")
	if *update {
		if err := os.WriteFile(formsPage, []byte(page.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	is, err := os.ReadFile(formsPage)
	if err != nil {
		t.Fatal(err)
	}
	if string(is) != page.String() {
		t.Errorf("%s is not what is tested: run the test with -update", formsPage)
	}
}

const formsHead = `# SQL: what is served

Every statement and form of PostgreSQL's grammar (17; servers 16 to 18), and what becomes of it. *Rewritten*: a table or view with
masked columns becomes a subquery with masks, and everything else stays. *As it is*: nothing has to be changed. *Refused*: with the
statement's name, the place, and what to write instead. Where no rule masks anything for the caller, what is served goes to the
target as it came, and so does what is refused here, COPY to and from files and programs and SET of a few settings aside, when
policy allows it without knowing what it does ([how](design/postgres.md#as-it-came)). Policy is asked first in any case. The examples are tested: in them, ` + "`ssn`" + ` and ` + "`card`" + ` of ` + "`customers`" + ` are masked,
` + "`secret`" + ` of ` + "`events`" + `, and ` + "`card`" + ` of ` + "`cards`" + `, which is partitioned by it.

## Statements

`

// tryForms runs each example through the masker and adds its line to the page.
func tryForms(t *testing.T, page *strings.Builder, head string, forms []servedForm) {
	t.Helper()
	a, cat := newTestAnalyzer(t), testCatalog(t)
	o := access.Obligations{Masks: masksOf("public.customers.ssn", "public.customers.card", "public.events.secret", "public.cards.card")}
	page.WriteString(head + "\n|---|---|---|\n")
	for _, form := range forms {
		f, err := a.Mask(t.Context(), judge(t, a, cat, form.text), cat, o)
		outcome := "as it is"
		var r *Refusal
		switch {
		case errors.As(err, &r):
			outcome = "refused: " + strings.TrimSuffix(r.Hint, ".")
			if !strings.Contains(r.Message, form.want) {
				t.Errorf("%s: %s", form.text, r.Message)
			}
		case err != nil:
			t.Fatal(err)
		case f.Text != form.text:
			outcome = "rewritten"
		}
		if r == nil && outcome != form.want {
			t.Errorf("%s: %s, not %s", form.text, outcome, form.want)
		}
		fmt.Fprintf(page, "| %s | `%s` | %s |\n", form.name, form.text, outcome)
	}
}

// partsOfRefused occur only inside other forms that are refused.
var partsOfRefused = []protoreflect.Name{
	"JsonArgument", "JsonBehavior", "JsonFormat", "JsonKeyValue", "JsonOutput", "JsonReturning", "JsonTableColumn", "JsonTablePathSpec",
	"JsonValueExpr", "RangeTableFuncCol",
}

// otherStatements lists what the tables of forms refuse by name: every message of
// the grammar's Node that no served statement stands for.
func otherStatements(t *testing.T) (refused, definitions []string) {
	t.Helper()
	a, cat := newTestAnalyzer(t), testCatalog(t)
	node := (&pg.Node{}).ProtoReflect()
	for _, f := range fieldsOf(node.Descriptor()) {
		name := f.Message().Name()
		form := a.grammar.forms[name]
		if slices.ContainsFunc(served, func(s servedForm) bool { return s.node == name }) {
			if form != formBound && form != formStatement {
				t.Errorf("%s is listed as served", name)
			}
			continue
		}
		if strings.HasSuffix(string(name), "Stmt") && (form == formBound || form == formStatement) {
			t.Errorf("%s runs and has no example", name)
		}
		switch form {
		case formRefused:
			if hint := formHints[name]; hint != "" {
				refused = append(refused, fmt.Sprintf("| %s | %s |\n", refusedForms[name], strings.TrimSuffix(hint, ".")))
			} else if !slices.Contains(partsOfRefused, name) {
				t.Errorf("what to write instead of %s is not said", refusedForms[name])
			}
		case formDefinition:
			node.Set(f, node.NewField(f))
			st, err := a.judgeOne(t.Context(), "", cat, &parser.Result{}, node.Interface().(*pg.Node))
			if err != nil || st.Refusal == nil || !st.Action.DDL {
				t.Errorf("%s: %+v, %v", name, st, err)
				continue
			}
			command := strings.Replace(st.Action.Command, "TYPE UNDEFINED", "…", 1)
			definitions = append(definitions, strings.Replace(command, "REVOKE", "GRANT and REVOKE", 1))
		}
	}
	if len(refused) < 20 || len(definitions) < 60 {
		t.Errorf("only %d refused and %d definitions", len(refused), len(definitions))
	}
	slices.Sort(refused)
	slices.Sort(definitions)
	return slices.Compact(refused), slices.Compact(definitions)
}
