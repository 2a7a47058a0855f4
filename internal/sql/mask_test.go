package sql

import (
	"context"
	"errors"
	"strings"
	"testing"

	"chaperone.dev/chaperone/internal/access"
	"chaperone.dev/chaperone/internal/sql/catalog"
)

func masksOf(columns ...string) []access.Mask {
	var masks []access.Mask
	for _, c := range columns {
		masks = append(masks, access.Mask{Column: c, With: access.Redact})
	}
	return masks
}

var secrets = masksOf("public.customers.ssn", "public.customers.card")

func maskIt(t testing.TB, a *Analyzer, cat *catalog.Snapshot, masks []access.Mask, text string) (*Forward, *Refusal) {
	t.Helper()
	st := judge(t, a, cat, text)
	f, err := a.Mask(context.Background(), st, cat, access.Obligations{Masks: masks})
	var r *Refusal
	if err != nil && !errors.As(err, &r) {
		t.Fatalf("%s: %v", text, err)
	}
	return f, r
}

// C stands for the subquery that takes customers' place.
const C = `(SELECT "id", "name", "email", '***'::"pg_catalog"."varchar"(11) AS "ssn", '***'::"pg_catalog"."text" AS "card" FROM "public"."customers")`

func TestMaskRewrites(t *testing.T) {
	t.Parallel()
	a, cat := newTestAnalyzer(t), testCatalog(t)
	for _, c := range []struct{ name, text, want, masked string }{
		{"star", "select * from customers c", "select * from C c", "ssn card"},
		{"no alias", "select ssn as x from customers", `select ssn as x from C AS "customers"`, "ssn"},
		{"as", "select c.ssn from public.customers as c", "select c.ssn from C as c", "ssn"},
		{"quoted", `select "ssn" from "public" . "customers"`, `select "ssn" from C AS "customers"`, "ssn"},
		{"case", "SELECT SSN FROM PUBLIC.CUSTOMERS", `SELECT SSN FROM C AS "customers"`, "ssn"},
		{"comments", "select /* a */ ssn from public /* b */ . -- c\n customers /* d */ c", "select /* a */ ssn from C /* d */ c", "ssn"},
		{"qualified column", "select public.customers.ssn, customers.id, public.customers.* from customers", `select customers.ssn, customers.id, customers.* from C AS "customers"`, "ssn card"},
		{"database", "select ssn from shop.public.customers", `select ssn from C AS "customers"`, "ssn"},
		{"cast and row", "select c::text, row_to_json(c), ssn || '', (c).ssn, c from customers c", "select c::text, row_to_json(c), ssn || '', (c).ssn, c from C c", "ssn card"},
		{"functions", "select md5(ssn), coalesce(ssn, 'x'), array_agg(ssn), min(card), string_agg(ssn, ',') from customers", `select md5(ssn), coalesce(ssn, 'x'), array_agg(ssn), min(card), string_agg(ssn, ',') from C AS "customers"`, "ssn card"},
		{"only", "select * from only customers", `select * from (SELECT "id", "name", "email", '***'::"pg_catalog"."varchar"(11) AS "ssn", '***'::"pg_catalog"."text" AS "card" FROM ONLY "public"."customers") AS "customers"`, "ssn card"},
		{"old star", "select id from customers * c", "select id from C c", ""},
		{"table", "table customers", `SELECT * FROM C AS "customers"`, "ssn card"},
		{"column aliases", "select b from customers c (a, b, c, d)", "select b from C c (a, b, c, d)", ""},
		{"join", "select c.ssn, o.total from orders o left join customers c on c.id = o.customer_id where o.total > 3", "select c.ssn, o.total from orders o left join C c on c.id = o.customer_id where o.total > 3", "ssn"},
		{"twice", "select a.ssn, b.ssn from customers a, customers b where a.id = b.id", "select a.ssn, b.ssn from C a, C b where a.id = b.id", "ssn"},
		{"subquery", "select s.x from (select ssn as x from customers) s", `select s.x from (select ssn as x from C AS "customers") s`, "ssn"},
		{"scalar", "select (select ssn from customers where id = o.customer_id) from orders o", `select (select ssn from C AS "customers" where id = o.customer_id) from orders o`, "ssn"},
		{"exists", "select exists (select * from customers)", `select exists (select * from C AS "customers")`, "ssn card"},
		{"declare", "declare x cursor with hold for select c.ssn from customers c", "declare x cursor with hold for select c.ssn from C c", "ssn"},
		{"prepare", "prepare p (int) as select c.ssn from customers c where id = $1", "prepare p (int) as select c.ssn from C c where id = $1", "ssn"},
		{"explain analyze", "explain (analyze, verbose) select c.ssn from customers c", "explain (analyze, verbose) select c.ssn from C c", "ssn"},
		{"copy query", "copy (select c.ssn from customers c) to stdout csv header", "copy (select c.ssn from C c) to stdout csv header", "ssn"},
		{"copy table", "copy customers to stdout", `copy (SELECT "id", "name", "email", '***'::"pg_catalog"."varchar"(11) AS "ssn", '***'::"pg_catalog"."text" AS "card" FROM ONLY "public"."customers") to stdout`, "ssn card"},
		{"copy columns", `copy public . "customers" /* ( */ ( "ssn", id ) to stdout (format binary)`, `copy (SELECT '***'::"pg_catalog"."varchar"(11) AS "ssn", "id" FROM ONLY "public"."customers") to stdout (format binary)`, "ssn"},
		{"cte", "with c as (select * from customers) select ssn from c", `with c as (select * from C AS "customers") select ssn from c`, "ssn card"},
		{"cte of the name", "with customers as (select 'a' as ssn) select ssn from customers where ssn = 'a'", "", ""},
		{"cte and table of the name", "with customers as (select * from customers) select ssn from customers", `with customers as (select * from C AS "customers") select ssn from customers`, "ssn card"},
		{"cte hides, schema does not", "with customers as (select 1 as id) select p.ssn from public.customers p, customers", "with customers as (select 1 as id) select p.ssn from C p, customers", "ssn"},
		{"recursive", "with recursive r as (select id, ssn from customers union all select r.id + 1, r.ssn from r where r.id < 3) select ssn from r", `with recursive r as (select id, ssn from C AS "customers" union all select r.id + 1, r.ssn from r where r.id < 3) select ssn from r`, "ssn"},
		{"union all", "select ssn from customers union all select name from customers", `select ssn from C AS "customers" union all select name from C AS "customers"`, "ssn"},
		{"order by another", "select ssn from customers order by id, name", `select ssn from C AS "customers" order by id, name`, "ssn"},
		{"window", "select ssn, lag(ssn) over (order by id) from customers", `select ssn, lag(ssn) over (order by id) from C AS "customers"`, "ssn"},
		{"group by key", "select id, count(*) from customers group by id", `select id, count(*) from C AS "customers" group by id`, ""},
		{"group by all", "select id, name, max(ssn) from customers group by id, name", `select id, name, max(ssn) from C AS "customers" group by id, name`, "ssn"},
		{"lateral", "select x.s from customers c, lateral (select c.ssn as s) x", "select x.s from C c, lateral (select c.ssn as s) x", "ssn"},
		{"values", "select * from customers, (values (1)) v(i) where v.i = id", `select * from C AS "customers", (values (1)) v(i) where v.i = id`, "ssn card"},
		{"case result", "select case when id = 1 then ssn else card end from customers", `select case when id = 1 then ssn else card end from C AS "customers"`, "ssn card"},
		{"explain", "explain (verbose) select ssn from customers", `explain (verbose) select ssn from C AS "customers"`, "ssn"},
		{"parameters", "select ssn from customers where id = $1", `select ssn from C AS "customers" where id = $1`, "ssn"},
		{"adjacent", "select*from customers,orders", `select*from C AS "customers",orders`, "ssn card"},
		{"view", "select * from dirty d", `select * from (SELECT "id", '***'::"pg_catalog"."text" AS "s" FROM "public"."dirty") d`, "public.dirty.s"},
		{"view, another column", "select id from dirty", `select id from (SELECT "id", '***'::"pg_catalog"."text" AS "s" FROM "public"."dirty") AS "dirty"`, ""},
		{"view that shows no masked column", "select id from over", "", ""},
		{"matview", "select * from computed c", `select * from (SELECT "id", NULL::"pg_catalog"."bool" AS "long", "name", "n", '***'::"pg_catalog"."text" AS "again" FROM "public"."computed") c`, "public.computed.again public.computed.long"},
		{"ctid", "select ctid, c.tableoid::regclass from customers c where ctid = '(0,1)'", "select ctid, c.tableoid::regclass from D c where ctid = '(0,1)'", ""},
		{"for update", "select id, ssn from customers c for update of c skip locked", "select id, ssn from C c for update of c skip locked", "ssn"},
		{"for share", "select id from customers for share", `select id from C AS "customers" for share`, ""},
		{"only in parentheses", "select id from only /* a */ ( public.customers ) c", "select id from O c", ""},
		{"sample", "select id from customers c tablesample system (10) repeatable (1) where id > 3", "select id from S c  where id > 3", ""},
		{"sample without alias", "select ssn from only customers tablesample pg_catalog.bernoulli (1.5), orders", `select ssn from T AS "customers" , orders`, "ssn"},
		{"group by key, another", "select c.id, name, ssn, count(*) from customers c group by c.id", `select c.id, name, ssn, count(*) from C c group by "c"."name", "c"."ssn", c.id`, "ssn"},
		{"group by key, renamed", "select a as x, b from customers c (a, b) group by x order by b", `select a as x, b from C c (a, b) group by "c"."b", x order by b`, ""},
		{"group by key, position", "select * from customers c group by 1", `select * from C c group by "c"."card", "c"."email", "c"."name", "c"."ssn", 1`, "ssn card"},
		{"group by key through a join", "select c.name from customers c join orders o using (id) group by id", `select c.name from C c join orders o using (id) group by "c"."name", id`, ""},
		{"clean view", "select c.ssn from customers c, clean", "select c.ssn from C c, clean", "ssn"},

		{"merge from masked", "merge into orders o using customers c on o.id = c.id when matched then update set total = c.id returning o.id, c.name", "merge into orders o using C c on o.id = c.id when matched then update set total = c.id returning o.id, c.name", ""},
		{"merge into masked", "merge into customers c using orders o on o.id = c.id when matched then delete when not matched then insert (id) values (o.id)", "", ""},
		{"untouched", "select id from orders", "", ""},
		{"other schema", "select ssn from crm.customers where ssn = '1'", "", ""},
		{"catalog", "select relname from pg_class where oid = 'customers'::regclass", "", ""},
		{"begin", "begin", "", ""},
		{"set", "set timezone = 'UTC'", "", ""},
		{"nothing", "", "", ""},
		{"change another", "update orders set total = 1 where id = 7 returning *", "", ""},
		{"change unmasked", "update customers set email = 'x' where id = 7 returning id, name", "", ""},
		{"delete", "delete from customers where id = 7", "", ""},
		{"insert unmasked", "insert into customers (id, email) values (1, 'x') on conflict (id) do nothing", "", ""},
		{"change by subquery", "delete from orders where customer_id in (select id from customers where name = 'x')", `delete from orders where customer_id in (select id from C AS "customers" where name = 'x')`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, r := maskIt(t, a, cat, secrets, c.text)
			if r != nil {
				t.Fatalf("%s: refused: %s", c.text, r.Message)
			}
			want := strings.ReplaceAll(c.want, "C ", C+" ")
			only, within := strings.Replace(C, "FROM ", "FROM ONLY ", 1), strings.TrimSuffix(C, ")")
			for short, long := range map[string]string{
				"O ": only, "D ": strings.Replace(C, " FROM", ", ctid, tableoid FROM", 1),
				"S ": within + " TABLESAMPLE pg_catalog.system (10) REPEATABLE (1))",
				"T ": strings.TrimSuffix(only, ")") + " TABLESAMPLE pg_catalog.bernoulli (1.5))",
			} {
				want = strings.Replace(want, "from "+short, "from "+long+" ", 1)
			}
			if c.want == "" {
				want = c.text
			}
			if f.Text != want {
				t.Errorf("%s\n got %s\nwant %s", c.text, f.Text, want)
			}
			masked := strings.ReplaceAll(strings.Join(f.Masked, " "), "public.customers.", "")
			if c.masked != "" && masked != strings.Join(sorted(c.masked), " ") || c.masked == "" && masked != "" {
				t.Errorf("%s: masked %q, not %q", c.text, masked, c.masked)
			}
			if (f.Action.Forward != "") != (c.want != "") || f.Action.Forward != "" && f.Action.Forward != f.Text {
				t.Errorf("%s: action forwards %q", c.text, f.Action.Forward)
			}
		})
	}
}

func sorted(words string) []string { return unite(strings.Fields(words), nil) }

// Every way in which a masked column decides on something is refused by name.
func TestMaskRefusals(t *testing.T) {
	t.Parallel()
	a, cat := newTestAnalyzer(t), testCatalog(t)
	for _, c := range []struct{ name, text, message string }{
		{"where", "select id from customers where ssn like '1%'", "public.customers.ssn is masked and cannot be used in WHERE"},
		{"where in", "select id from customers where id in (1) and (name, ssn) = ('a', 'b')", "WHERE"},
		{"where null", "select id from customers where ssn is null", "WHERE"},
		{"where function", "select id from customers c where length(card) = 3", "card is masked and cannot be used in WHERE"},
		{"where row", "select id from customers c where c::text like '%1%'", "WHERE"},
		{"where field", "select id from customers c where (c).ssn = '1'", "WHERE"},
		{"where subquery", "select id from orders where customer_ssn in (select ssn from customers)", "WHERE"},
		{"where correlated", "select id from orders o where exists (select 1 from customers c where c.ssn = o.customer_ssn)", "WHERE"},
		{"where scalar", "select id from orders o where (select ssn from customers limit 1) = 'x'", "WHERE"},
		{"where derived", "select * from (select ssn as x from customers) s where x = '1'", "WHERE"},
		{"where computed", "select * from (select md5(ssn || 'salt') as x from customers) s where s.x = '1'", "WHERE"},
		{"where cte", "with c(a, b) as (select id, card from customers) select a from c where b = '1'", "card is masked and cannot be used in WHERE"},
		{"where union", "select * from (select name as x from customers union all select ssn from customers) s where x = '1'", "WHERE"},
		{"where recursive", "with recursive r as (select 0 as n, '' as s union all select n + 1, ssn::text from r, customers where id = n) select n from r where s = '1'", "WHERE"},
		{"where lateral", "select 1 from customers c, lateral (select c.ssn as s) x where x.s = '1'", "WHERE"},
		{"where join alias", "select 1 from (customers c join orders o on o.id = c.id) as j where j.ssn = '1'", "WHERE"},
		{"where alias list", "select 1 from customers c (a, b, c, d, e) where d = '1'", "WHERE"},
		{"on", "select 1 from customers c join orders o on o.customer_ssn = c.ssn", "JOIN … ON"},
		{"using", "select 1 from customers join crm.customers as d using (ssn)", "JOIN … USING"},
		{"natural", "select 1 from customers natural join crm.customers as d", "NATURAL JOIN"},
		{"group by", "select count(*) from customers group by ssn", "GROUP BY"},
		{"group by position", "select ssn, count(*) from customers group by 1", "GROUP BY"},
		{"group by name", "select ssn || 'x' as y, count(*) from customers group by y", "GROUP BY"},
		{"group by sets", "select count(*) from customers group by grouping sets ((ssn), ())", "GROUP BY"},
		{"group by row", "select count(*) from customers c group by c", "GROUP BY"},
		{"group by key, row", "select c from customers c group by id", "must appear in GROUP BY itself"},
		{"group by key, sets", "select id, name from customers group by rollup (id)", "name must appear in GROUP BY itself"},
		{"group by key, expression first", "select id, name from customers group by (id)", "GROUP BY is written in a way"},
		{"group by key, distinct", "select id, name from customers group by distinct id", "GROUP BY is written in a way"},
		{"having", "select id from customers group by id having max(ssn) > '1'", "HAVING"},
		{"order by", "select id from customers order by ssn", "ORDER BY"},
		{"order by position", "select id, ssn from customers order by 2", "ORDER BY"},
		{"order by name", "select ssn as x from customers order by x", "ORDER BY"},
		{"order by row", "select id from customers c order by c", "ORDER BY"},
		{"order by union", "select ssn as x from customers union all select name from customers order by x", "ORDER BY"},
		{"distinct", "select distinct ssn from customers", "DISTINCT"},
		{"distinct star", "select distinct * from customers", "DISTINCT"},
		{"distinct on", "select distinct on (ssn) id from customers", "DISTINCT ON"},
		{"union", "select ssn from customers union select name from customers", "UNION"},
		{"intersect", "select customer_ssn from orders intersect all select ssn from customers", "INTERSECT"},
		{"except", "select ssn from customers except all select 'x'", "EXCEPT"},
		{"recursive union", "with recursive r as (select ssn from customers union select ssn from r) select 1 from r", "UNION"},
		{"partition", "select count(*) over (partition by ssn) from customers", "window"},
		{"window order", "select rank() over (order by ssn) from customers", "window"},
		{"named window", "select rank() over w from customers window w as (order by ssn)", "window"},
		{"filter", "select count(*) filter (where ssn = '1') from customers", "FILTER"},
		{"aggregate order", "select string_agg(name, ',' order by ssn) from customers", "ORDER BY in an aggregate"},
		{"within group", "select percentile_disc(0.5) within group (order by ssn) from customers", "ORDER BY in an aggregate"},
		{"aggregate distinct", "select count(distinct ssn), array_agg(distinct ssn) from customers", "DISTINCT in an aggregate"},
		{"count", "select count(ssn) from customers", "count()"},
		{"bool_or", "select bool_or(ssn = '1') from customers", "bool_or()"},
		{"limit", "select 1 limit (select ssn::int from customers)", "LIMIT"},
		{"comparison", "select ssn = '1' from customers", "a comparison"},
		{"like", "select ssn like '1%' from customers", "a comparison"},
		{"in", "select ssn in ('1', '2') from customers", "a comparison"},
		{"between", "select ssn between '1' and '2' from customers", "a comparison"},
		{"any", "select '1' = any (array[ssn]) from customers", "a comparison"},
		{"distinct from", "select ssn is distinct from '1' from customers", "a comparison"},
		{"nullif", "select nullif(ssn, '1') from customers", "a comparison"},
		{"regex", "select ssn ~ '^1' from customers", "a comparison"},
		{"in subquery", "select '1' in (select ssn from customers)", "a comparison"},
		{"is null", "select ssn is null from customers", "IS NULL"},
		{"case", "select case ssn when '1' then 2 end from customers", "CASE"},
		{"case when", "select case when ssn = '1' then 2 end from customers", "CASE WHEN"},
		{"greatest", "select greatest(ssn, '1') from customers", "GREATEST"},
		{"length", "select length(ssn) from customers", "length()"},
		{"function that returns rows", "select id, regexp_split_to_table(ssn, '-') from customers", "regexp_split_to_table(), which returns rows"},
		{"view of a function that returns rows", "select id from split", "public.split uses public.customers.ssn, which is masked, in generate_series(), which returns rows"},
		{"function in from", "select x from customers c, string_to_table(c.ssn, '-') x", "a function in FROM"},

		{"update where", "update customers set name = 'x' where ssn = '1'", "cannot take part in UPDATE"},
		{"update set", "update customers set ssn = 'x' where id = 1", "public.customers.ssn is masked and cannot be written"},
		{"update from masked", "update customers set name = ssn", "cannot take part in UPDATE"},
		{"update from", "update orders set customer_ssn = c.ssn from customers c where c.id = customer_id", "cannot take part in UPDATE"},
		{"returning", "update customers set name = 'x' returning ssn", "cannot take part in UPDATE"},
		{"returning star", "delete from customers where id = 1 returning *", "cannot take part in DELETE"},
		{"returning row", "delete from customers c where id = 1 returning c", "cannot take part in DELETE"},
		{"delete where", "delete from customers where card like '4%'", "cannot take part in DELETE"},
		{"delete by subquery", "delete from orders where customer_ssn not in (select ssn from customers)", "cannot take part in DELETE"},
		{"delete using", "delete from orders using customers c where c.ssn = customer_ssn", "cannot take part in DELETE"},
		{"insert select", "insert into orders (customer_ssn) select ssn from customers", "cannot take part in INSERT"},
		{"insert select derived", "insert into orders (customer_ssn) select x from (select ssn as x from customers) s", "cannot take part in INSERT"},
		{"insert all", "insert into customers values (1, 'a', 'b', 'c', 'd')", "cannot be written"},
		{"insert masked", "insert into customers (id, ssn) values (1, 'a') on conflict do nothing", "cannot be written"},
		{"on conflict masked", "insert into customers (id) values (1) on conflict (ssn) do nothing", "cannot take part in INSERT"},
		{"excluded", "insert into customers (id) values (1) on conflict (id) do update set email = excluded.ssn", "cannot take part in INSERT"},
		{"unique with masked", "update customers set name = 'guess' where id = 1", "a constraint of public.customers would tell"},
		{"reference to masked", "insert into orders (id, customer_ssn) values (1, '078-05-1120')", "a constraint of public.orders would tell whether a value of public.customers.ssn exists"},
		{"writing cte", "with d as (delete from orders where id = 1) select ssn from customers", "cannot take part in DELETE"},
		{"security definer trigger", "update audited set note = 'x'", "trigger audit of public.audited"},
		{"explain update", "explain update customers set name = 'x' where ssn = '1'", "cannot take part in UPDATE"},

		{"sample of an expression", "select id from customers tablesample system (5 + 5)", "takes a number only"},
		{"sample repeated by an expression", "select id from customers tablesample system (5) repeatable ($1)", "takes a number only"},
		{"sample by a method of a user", "select id from customers tablesample mine (5)", "sampling method"},
		{"ctid beside all", "select ctid, * from customers", "system column ctid cannot be read beside *"},
		{"ctid beside the row", "select c.ctid, c from customers c", "system column ctid cannot be read beside *"},
		{"ctid beside a natural join", "select c.ctid from customers c natural join orders", "system column ctid cannot be read beside *"},
		{"unicode name", `select id from U&"customer\0073"`, "spelled in a way"},
		{"view that a masked column decides on", "select id from chosen", "public.chosen uses public.customers.card, which is masked, in WHERE"},
		{"view over one that a masked column decides on", "select id from chosen_twice", "public.chosen_twice uses public.customers.card"},
		{"view of which the server says more", "select id from untold", "what view public.untold does is not known"},
		{"masked column of a view decides", "select id from dirty where s like '4%'", "public.dirty.s is masked and cannot be used in WHERE"},
		{"masked column of a view in a change", "update orders set total = 1 from dirty where s = 'x'", "cannot take part in UPDATE"},
		{"view of unknown", "select id from calls", "function public.mystery"},
		{"foreign table", "select id from remote", "public.remote may hold masked values"},
		{"statistics", "select most_common_vals from pg_stats", "pg_catalog.pg_stats may hold masked values"},
		{"unknown function", "select mystery(1)", "columns are masked here, and function public.mystery is not known"},
		{"query function", "select query_to_xml('select ssn from customers', true, false, '')", "query_to_xml"},
		{"table function", "select table_to_xml('customers', true, false, '')", "table_to_xml"},
		{"file", "select pg_read_file('base/1/1234')", "pg_read_file"},
		{"shadowing operator", "select id ~~~ 1 from customers", "operator ~~~"},
		{"copy where", "copy (select id from customers where ssn like '1%') to stdout", "public.customers.ssn is masked and cannot be used in WHERE"},
		{"copy a view", "copy (select id from chosen) to stdout", "public.chosen uses public.customers.card"},
		{"copy statistics", "copy pg_stats to stdout", "not a plain table"},
		{"copy spelled with escapes", "copy U&\"cust\\006fmers\" to stdout", "spelled in a way"},
		{"copy the old way", "copy binary customers to stdout", "cannot be rewritten"},
		{"copy into a masked table", "copy customers from stdin", "is masked and cannot be written"},
		{"copy into unmasked columns that tell", "copy customers (name) from stdin", "would tell whether a value of public.customers.ssn exists"},
		{"copy in by a masked column", "copy customers (id, email) from stdin where ssn is null", "is masked and cannot"},
		{"declare where", "declare c cursor for select id from customers order by ssn", "public.customers.ssn is masked and cannot be used in ORDER BY"},
		{"prepare where", "prepare p as select id from customers where ssn = $1", "public.customers.ssn is masked and cannot be used in WHERE"},
		{"prepare a write", "prepare p as update customers set ssn = $1 where id = 1", "is masked and cannot be written"},
		{"explain analyze where", "explain analyze select id from customers where ssn = 'x'", "public.customers.ssn is masked and cannot be used in WHERE"},
		{"merge on", "merge into orders o using customers c on o.customer_ssn = c.ssn when matched then delete", "cannot take part in MERGE"},
		{"merge when", "merge into orders o using customers c on o.id = c.id when matched and c.ssn = '1' then delete", "cannot take part in MERGE"},
		{"merge stores", "merge into orders o using customers c on o.id = c.id when matched then update set customer_ssn = c.ssn", "cannot take part in MERGE"},
		{"merge inserts", "merge into orders o using customers c on o.id = c.id when not matched then insert (id, customer_ssn) values (c.id, c.ssn)", "cannot take part in MERGE"},
		{"merge into masked", "merge into customers c using orders o on o.id = c.id when matched then update set ssn = 'x'", "public.customers.ssn is masked and cannot be written"},
		{"merge inserts every column", "merge into customers c using orders o on o.id = c.id when not matched then insert values (1, 'a', 'b', 'c', 'd')", "is masked and cannot be written"},
		{"merge returning", "merge into customers c using orders o on o.id = c.id when matched then delete returning c.ssn", "cannot take part in MERGE"},
		{"merge returning all", "merge into orders o using customers c on o.id = c.id when matched then delete returning *", "cannot take part in MERGE"},
		{"create as", "create table t as select ssn from customers", "CREATE TABLE AS"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, r := maskIt(t, a, cat, secrets, c.text)
			if r == nil {
				t.Fatalf("%s: forwarded as %s", c.text, f.Text)
			}
			if !strings.Contains(r.Message, c.message) || r.Hint == "" || r.SQLState == "" {
				t.Errorf("%s\n got %+v\nwant %q", c.text, r, c.message)
			}
		})
	}
}

// The same statements pass where nothing is masked, unless the form itself is
// not handled: the masks are what refuses them.
func TestRefusalsNeedMasks(t *testing.T) {
	t.Parallel()
	a, cat := newTestAnalyzer(t), testCatalog(t)
	for _, text := range []string{
		"select id from customers where ssn like '1%'", "select distinct ssn from customers", "update customers set ssn = 'x' where id = 1",
		"copy orders to stdout", "copy (select id from dirty) to stdout", "copy customers from stdin",
		"select ctid from customers", "select id from dirty", "select mystery(1)", "select id from customers for update",
		"insert into orders (id, customer_ssn) values (1, 'x')", "update audited set note = 'x'", "select id, name from customers group by id",
	} {
		f, r := maskIt(t, a, cat, []access.Mask{{Detect: []string{"CREDIT_CARD"}}, {JSON: "/a"}}, text)
		if r != nil || f.Text != text || f.Action.Forward != "" {
			t.Errorf("%s: %v", text, r)
		}
	}
}

func TestMaskedFieldsAreSaidSo(t *testing.T) {
	t.Parallel()
	a, cat := newTestAnalyzer(t), testCatalog(t)
	_, r := maskIt(t, a, cat, secrets, "select 'é', id from customers where id = 1 and ssn like '1%'")
	if r == nil || r.Reason != access.MaskedField || r.SQLState != "42501" || r.Position != 48 || !strings.Contains(r.Hint, "ask for a rule") {
		t.Errorf("got %+v", r)
	}
}

// What else carries a masked value is masked with it.
func TestMaskSpreads(t *testing.T) {
	t.Parallel()
	a, cat := newTestAnalyzer(t), testCatalog(t)
	for _, c := range []struct{ name, mask, text, want string }{
		{"generated column", "public.people.ssn", "select last4 from people", `'***'::"pg_catalog"."text" AS "last4"`},
		{"partition of a masked table", "public.events.secret", "select secret from events_1", `(SELECT '***'::"pg_catalog"."text" AS "secret", "id" FROM "public"."events_1")`},
		{"parent of a masked partition", "public.events_1.secret", "select secret from events", `"id", '***'::"pg_catalog"."text" AS "secret" FROM "public"."events"`},
		{"mask of a view", "public.clean.id", "select id from clean", `(SELECT NULL::"pg_catalog"."int4" AS "id" FROM "public"."clean")`},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, r := maskIt(t, a, cat, masksOf(c.mask), c.text)
			if r != nil || !strings.Contains(f.Text, c.want) {
				t.Errorf("%s: %v\n%+v", c.text, r, f)
			}
		})
	}
	if _, r := maskIt(t, a, cat, masksOf("public.customers.nothing"), "select id from customers"); r == nil || !strings.Contains(r.Message, "has no such column") {
		t.Errorf("a mask of a column that is gone lets the table be read: %v", r)
	}
	if _, r := maskIt(t, a, cat, masksOf("public.gone.ssn"), "select id from customers"); r != nil {
		t.Errorf("a mask of a table that is gone: %v", r)
	}
	if _, r := maskIt(t, a, cat, masksOf("public.people.ssn"), "select id from people where last4 = '1234'"); r == nil {
		t.Error("a generated column of a masked one decides")
	}
}

func TestMaskConstants(t *testing.T) {
	t.Parallel()
	m := &masking{library: newLibrary(nil)}
	for want, c := range map[string]catalog.Column{
		`'***'::"pg_catalog"."text"`:                  {TypeSchema: "pg_catalog", TypeName: "text", Typmod: -1},
		`'***'::"pg_catalog"."text" COLLATE public.x`: {TypeSchema: "pg_catalog", TypeName: "text", Typmod: -1, Collation: "public.x"},
		`'***'::"pg_catalog"."varchar"`:               {TypeSchema: "pg_catalog", TypeName: "varchar", Typmod: -1},
		`'***'::"pg_catalog"."varchar"(3)`:            {TypeSchema: "pg_catalog", TypeName: "varchar", Typmod: 7},
		`NULL::"pg_catalog"."varchar"(2)`:             {TypeSchema: "pg_catalog", TypeName: "varchar", Typmod: 6},
		`'***'::"pg_catalog"."bpchar"(11)`:            {TypeSchema: "pg_catalog", TypeName: "bpchar", Typmod: 15},
		`NULL::"pg_catalog"."numeric"(10,2)`:          {TypeSchema: "pg_catalog", TypeName: "numeric", Typmod: 655366},
		`NULL::"pg_catalog"."text"[]`:                 {TypeSchema: "pg_catalog", TypeName: "_text", Typmod: -1},
		`NULL::"public"."mood"`:                       {TypeSchema: "public", TypeName: "mood", TypeKind: "e", OwnType: "public.mood"},
		`NULL::"public"."mood"[]`:                     {TypeSchema: "public", TypeName: "_mood", TypeKind: "e", OwnType: "public._mood"},
		`NULL::"public"."citext"`:                     {TypeSchema: "public", TypeName: "citext", TypeKind: "b", OwnType: "public.citext", Extension: "citext"},
		`NULL::pg_catalog.text`:                       {TypeSchema: "public", TypeName: "place", TypeKind: "b", OwnType: "public.place"},
		`NULL::"pg""x"."a"`:                           {TypeSchema: `pg"x`, TypeName: "a", TypeKind: "e"},
	} {
		if got := m.constant(&c); got != want {
			t.Errorf("%+v: %s, not %s", c, got, want)
		}
	}
}

// Columns that the role cannot read are named only when the client names them.
func TestUnreadableColumnsAreLeftOut(t *testing.T) {
	t.Parallel()
	a := newTestAnalyzer(t)
	cat := testCatalog(t, func(c *catalogContents) { c.Relations[0].Columns[2].CanSelect = false }) // email
	for text, named := range map[string]bool{
		"select id, ssn from customers": false, "select email from customers": true, "select * from customers": true,
		"select row_to_json(c) from customers c": true, "select a from customers c (a)": true, "select count(*) from customers": false,
	} {
		f, r := maskIt(t, a, cat, secrets, text)
		if r != nil || strings.Contains(f.Text, `"email"`) != named {
			t.Errorf("%s: %v %+v", text, r, f)
		}
	}
}

func TestClientPosition(t *testing.T) {
	t.Parallel()
	a, cat := newTestAnalyzer(t), testCatalog(t)
	text := "select 'é', public.customers.ssn, nope from customers where nope = 1"
	f, r := maskIt(t, a, cat, secrets, strings.ReplaceAll(text, "nope", "name"))
	if r != nil {
		t.Fatal(r)
	}
	client := []rune(f.client)
	forward := []rune(f.Text)
	for _, word := range []string{"select", "'é'", "from", "where", "= 1"} {
		at := strings.Index(f.Text, word)
		if word == "from" {
			at = strings.Index(f.Text, " from (") + 1
		}
		got := f.ClientPosition(len([]rune(f.Text[:at])) + 1)
		if want := len([]rune(f.client[:strings.Index(f.client, word)])) + 1; got != want {
			t.Errorf("%s: %d, not %d", word, got, want)
		}
	}
	inside := len([]rune(f.Text[:strings.Index(f.Text, "(SELECT")])) + 20
	if got := f.ClientPosition(inside); string(client[got-1:got+8]) != "customers" {
		t.Errorf("inside the subquery: %d", got)
	}
	if f.ClientPosition(0) != 0 || f.ClientPosition(len(forward)+50) > len(client)+1 {
		t.Error("the ends are not kept")
	}
	same, _ := maskIt(t, a, cat, nil, "select 1")
	if same.ClientPosition(5) != 5 {
		t.Error("an unchanged text shifts positions")
	}
}
