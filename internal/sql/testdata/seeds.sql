select 1
select id, name from customers where id = 7 order by 2 limit 10
select * from crm.customers
select c.id, o.total from customers c join orders o on o.customer_id = c.id
table orders
values (1, 'a'), (2, 'b') order by column1
select relname from pg_catalog.pg_class where relname operator(pg_catalog.~) '^c' collate pg_catalog.default
select c.relname from pg_class c
with customers as (select 1 as id) select id from customers
with customers as (select 1 as id) select id from public.customers
with customers as (select * from customers) select * from customers
with recursive customers as (select 1 as id union all select id + 1 from customers where id < 3) select * from customers
with recursive a as (select * from b), b as (select id from orders) select * from a
with a as (select id from orders), orders as (select 1 as id) select a.id from a, orders
with orders as (select 1 as id) select * from (select (select max(id) from orders) as m) x
select * from (with orders as (select 1 as id) select * from orders) x, orders
select id from orders union select id from customers except select 1
select id, row_number() over w, sum(total) over (partition by customer_id) from orders window w as (order by at)
select c.id, x.t from customers c, lateral (select sum(o.total) as t from orders o where o.customer_id = c.id) x
select g, o.value, k.key from generate_series(1, 3) g, jsonb_array_elements('[1]') o, jsonb_each('{}') k
select x.a, x.n from unnest(array[1]) with ordinality as x(a, n)
select x.a from json_to_record('{}') as x(a int, b text)
select pg_sleep(60)
select current_date, now(), current_user, version()
select extract(year from at), at at time zone 'utc', trim(both from ' x'), substring('abc' from 2) from orders
select id from orders where id = any($1) and total > $3
select '1'::int, cast(id as text), '{a}'::text[], 'customers'::regclass, interval '1 day' from orders
select 'ok'::mood, mood from typed where mood = 'sad'
select tag from typed
select vouched(id), public.vouched(1) from orders
select similarity('a', 'b'), 'a' % 'b'
select * from clean
select id from over
select customer_id, count(*) filter (where total > 1) from orders group by rollup(customer_id) having count(*) > 1
select id from customers join orders using (id)
select * from customers natural join crm.customers as x
select id from orders tablesample system (10)
select last_value from seq
select id from shop.public.orders
explain select * from orders
explain (verbose, costs off, analyze false) select 1
select id from orders for update
select * from (select id from orders for share) x
insert into orders (id, total) values (1, default)
insert into orders (id) select id from customers where id = 1
insert into orders values (1, 2, '', 3, now())
insert into orders (id) values (1) on conflict (id) do update set total = excluded.total where orders.total < 3 returning id
update orders set total = 1 where id = 7
update orders set total = 1
update orders set total = 1 where true
update orders o set (total, at) = (select 1, now()) from customers c where c.id = o.customer_id returning o.*
delete from orders where id in (select id from customers)
delete from orders o where exists (select 1 from customers c where c.id = o.customer_id)
delete from orders using customers c where c.id = customer_id
with orders as (select 1 as id) delete from orders
with d as (delete from orders returning id) select * from d
with d as (delete from orders where id = 1), i as (insert into customers (id) values (1)) select 1
explain delete from orders
drop table orders
drop table if exists crm.customers, nothing cascade
create table t (id int references orders)
create temp table t ()
alter table orders add column x int
alter table orders rename to o
alter table orders rename column id to i
truncate orders, customers
create index on orders (id)
create view v as select * from customers
grant select on orders to app
create function f() returns int language sql as 'select 1'
drop trigger t on orders
alter role app set search_path = x
begin isolation level serializable read only
commit
set application_name = 'x'
show timezone
 -- nothing
select mystery(1)
select pg_read_file('/etc/passwd')
select pg_catalog.pg_ls_dir('/')
select nextval('seq')
select set_config('role', 'postgres', false)
select query_to_xml('select * from customers', true, false, '')
select * from ts_stat('select ssn from customers') as x(a)
select lo_unlink(1)
select pg_advisory_lock(1)
select pg_terminate_backend(1)
select upper('x')
select hidden.lower('x')
select length(c) from customers c
select 1 ~~~ 2
select 1 operator(public.~~~) 2
select place from typed where id <= 3
select 'x'::tag
select null::customers
select 'x'::nothing
select 'x'::pg_catalog.internal
select place from typed
select * from calls
select id from orders order by id using ~~~
select id from orders tablesample mystery (1)
select count(*) filter (where mystery(1)) from orders
select sum(id) over (rows mystery(1) preceding) from orders
select 1 limit mystery(1)
values (mystery(1))
select (select mystery(1))
select array[mystery(1)], (array[1])[mystery(1)]
explain select mystery(1)
select é from nothing
select 'é', nothing from orders
select o.nothing from orders o
select x.id from orders o
select orders.id from orders o
update orders set total = 1 returning old.total
update orders set total = 1 returning old
select id from orders, customers
select o.row_to_json from orders o
select * from orders o, (select o.id) x
select 1 from orders o, customers c join crm.customers d on o.id = d.id
select * from other.public.orders
select * from pg_temp.orders
select * from pg_toast.pg_toast_1
with a as (select * from b), b as (select 1) select 1 from a
with recursive a as (select * from a) select 1 from a
select 1; drop table orders
copy customers to stdout
copy (select ssn from customers) to stdout
prepare p as select 1
execute p
fetch next from c
do 'begin end'
call p()
listen x
lock orders
merge into orders o using customers c on o.id = c.id when matched then delete
create table t as select 1
select * into t from orders
explain analyze select 1
explain (analyze true) select 1
explain (buffers) select 1
explain execute p
explain create table t as select 1
delete from orders where current of c
select * from json_table('[]', '$' columns (a int)) x
select xmlelement(name a)
with recursive a as (select 1 as id union all select id from a) cycle id set c using p select 1 from a
prepare transaction 'x'
set role postgres
set session authorization x
set search_path = x
set app.tenant = 1
set standard_conforming_strings = off
set client_encoding = 'latin1'
set names 'sjis'
set statement_timeout = 0
set datestyle = 'german'
reset all
show all
set transaction snapshot 'x'
set session characteristics as transaction read only
update clean set id = 1
delete from ruled
select * from mystery(1) m
select (c).* from customers c
table
TABLE
values
set operations
domain column
explain
explain options
select for update
insert
insert select
insert all
update
update all
update where true
update from
delete
delete exists
delete using
explain delete
drop
drop several
create
create temp
alter
truncate
grant
drop trigger
begin
set
show
set_config
domain
copy
copy query
prepare
execute
fetch
do
call
listen
lock
merge
create as
explain analyze
explain analyze on
explain buffers
explain execute
explain create
set role
set session authorization
set search_path
set custom
set strings
set encoding
set names
set no timeout
set datestyle
select 1; drop table orders; select * from customers
copy orders from stdin
create table t as select * from customers
select nothing from customers, orders
explain analyze delete from orders
merge into orders o using customers c on true when matched then delete
select c.name, lower(email) from customers c where id = $2
select count(*) from orders
select x.b from (select id as b, total from orders) x
select row_to_json(c) from crm.customers c
select id from customers join crm.customers x using (id)
insert into orders (id) values ($1) returning total
select public.vouched(current_date)
delete from orders
delete from orders returning id
end
abort
savepoint a
set transaction isolation level serializable
set local statement_timeout = '5 s'
set statement_timeout = 250
set time zone 'UTC'
set time zone default
set datestyle to iso, mdy
set extra_float_digits = 3
reset application_name
show server_version
explain select 1
select * from customers c
select ssn as x from customers
select c.ssn from public.customers as c
select "ssn" from "public" . "customers"
SELECT SSN FROM PUBLIC.CUSTOMERS
select /* a */ ssn from public /* b */ . -- c  customers /* d */ c
select public.customers.ssn, customers.id, public.customers.* from customers
select ssn from shop.public.customers
select c::text, row_to_json(c), ssn || '', (c).ssn, c from customers c
select md5(ssn), coalesce(ssn, 'x'), array_agg(ssn), min(card), string_agg(ssn, ',') from customers
select * from only customers
select id from customers * c
table customers
select b from customers c (a, b, c, d)
select c.ssn, o.total from orders o left join customers c on c.id = o.customer_id where o.total > 3
select a.ssn, b.ssn from customers a, customers b where a.id = b.id
select s.x from (select ssn as x from customers) s
select (select ssn from customers where id = o.customer_id) from orders o
select exists (select * from customers)
with c as (select * from customers) select ssn from c
with customers as (select 'a' as ssn) select ssn from customers where ssn = 'a'
with customers as (select * from customers) select ssn from customers
with customers as (select 1 as id) select p.ssn from public.customers p, customers
with recursive r as (select id, ssn from customers union all select r.id + 1, r.ssn from r where r.id < 3) select ssn from r
select ssn from customers union all select name from customers
select ssn from customers order by id, name
select ssn, lag(ssn) over (order by id) from customers
select id, count(*) from customers group by id
select id, name, max(ssn) from customers group by id, name
select x.s from customers c, lateral (select c.ssn as s) x
select * from customers, (values (1)) v(i) where v.i = id
select case when id = 1 then ssn else card end from customers
explain (verbose) select ssn from customers
select ssn from customers where id = $1
select*from customers,orders
select c.ssn from customers c, clean
select id from orders
select ssn from crm.customers where ssn = '1'
select relname from pg_class where oid = 'customers'::regclass
set timezone = 'UTC'
update orders set total = 1 where id = 7 returning *
update customers set email = 'x' where id = 7 returning id, name
delete from customers where id = 7
insert into customers (id, email) values (1, 'x') on conflict (id) do nothing
delete from orders where customer_id in (select id from customers where name = 'x')
select id from customers where ssn like '1%'
select id from customers where id in (1) and (name, ssn) = ('a', 'b')
select id from customers where ssn is null
select id from customers c where length(card) = 3
select id from customers c where c::text like '%1%'
select id from customers c where (c).ssn = '1'
select id from orders where customer_ssn in (select ssn from customers)
select id from orders o where exists (select 1 from customers c where c.ssn = o.customer_ssn)
select id from orders o where (select ssn from customers limit 1) = 'x'
select * from (select ssn as x from customers) s where x = '1'
select * from (select md5(ssn || 'salt') as x from customers) s where s.x = '1'
with c(a, b) as (select id, card from customers) select a from c where b = '1'
select * from (select name as x from customers union all select ssn from customers) s where x = '1'
with recursive r as (select 0 as n, '' as s union all select n + 1, ssn::text from r, customers where id = n) select n from r where s = '1'
select 1 from customers c, lateral (select c.ssn as s) x where x.s = '1'
select 1 from (customers c join orders o on o.id = c.id) as j where j.ssn = '1'
select 1 from customers c (a, b, c, d, e) where d = '1'
select 1 from customers c join orders o on o.customer_ssn = c.ssn
select 1 from customers join crm.customers as d using (ssn)
select 1 from customers natural join crm.customers as d
select count(*) from customers group by ssn
select ssn, count(*) from customers group by 1
select ssn || 'x' as y, count(*) from customers group by y
select count(*) from customers group by grouping sets ((ssn), ())
select count(*) from customers c group by c
select id, ssn from customers group by id
select id, name from customers group by id
select id from customers group by id having max(ssn) > '1'
select id from customers order by ssn
select id, ssn from customers order by 2
select ssn as x from customers order by x
select id from customers c order by c
select ssn as x from customers union all select name from customers order by x
select distinct ssn from customers
select distinct * from customers
select distinct on (ssn) id from customers
select ssn from customers union select name from customers
select customer_ssn from orders intersect all select ssn from customers
select ssn from customers except all select 'x'
with recursive r as (select ssn from customers union select ssn from r) select 1 from r
select count(*) over (partition by ssn) from customers
select rank() over (order by ssn) from customers
select rank() over w from customers window w as (order by ssn)
select count(*) filter (where ssn = '1') from customers
select string_agg(name, ',' order by ssn) from customers
select percentile_disc(0.5) within group (order by ssn) from customers
select count(distinct ssn), array_agg(distinct ssn) from customers
select count(ssn) from customers
select bool_or(ssn = '1') from customers
select 1 limit (select ssn::int from customers)
select ssn = '1' from customers
select ssn like '1%' from customers
select ssn in ('1', '2') from customers
select ssn between '1' and '2' from customers
select '1' = any (array[ssn]) from customers
select ssn is distinct from '1' from customers
select nullif(ssn, '1') from customers
select ssn ~ '^1' from customers
select '1' in (select ssn from customers)
select ssn is null from customers
select case ssn when '1' then 2 end from customers
select case when ssn = '1' then 2 end from customers
select greatest(ssn, '1') from customers
select length(ssn) from customers
select x from customers c, string_to_table(c.ssn, '-') x
update customers set name = 'x' where ssn = '1'
update customers set ssn = 'x' where id = 1
update customers set name = ssn
update orders set customer_ssn = c.ssn from customers c where c.id = customer_id
update customers set name = 'x' returning ssn
delete from customers where id = 1 returning *
delete from customers c where id = 1 returning c
delete from customers where card like '4%'
delete from orders where customer_ssn not in (select ssn from customers)
delete from orders using customers c where c.ssn = customer_ssn
insert into orders (customer_ssn) select ssn from customers
insert into orders (customer_ssn) select x from (select ssn as x from customers) s
insert into customers values (1, 'a', 'b', 'c', 'd')
insert into customers (id, ssn) values (1, 'a') on conflict do nothing
insert into customers (id) values (1) on conflict (ssn) do nothing
insert into customers (id) values (1) on conflict (id) do update set email = excluded.ssn
update customers set name = 'guess' where id = 1
insert into orders (id, customer_ssn) values (1, '078-05-1120')
with d as (delete from orders where id = 1) select ssn from customers
update audited set note = 'x'
explain update customers set name = 'x' where ssn = '1'
select id from customers tablesample system (10)
select ctid, id from customers
select c.tableoid from customers c
select id from customers for update
select id from only (customers)
select id from U&"customer\0073"
select id from dirty
select id from calls
select id from remote
select most_common_vals from pg_stats
select query_to_xml('select ssn from customers', true, false, '')
select table_to_xml('customers', true, false, '')
select pg_read_file('base/1/1234')
select id ~~~ 1 from customers
copy (select 1) to stdout
merge into orders using customers c on true when matched then delete
create table t as select ssn from customers
insert unmasked
within group
update where
update set
update from masked
delete where
delete by subquery
insert select derived
insert masked
explain update
tableoid
table function
select ctid from customers
insert into orders (id, customer_ssn) values (1, 'x')
select id, ssn from customers
select row_to_json(c) from customers c
select c from customers c
select c::text, row_to_json(c)::text, (c).ssn, c::text from customers c where id < 3
select ssn || '', ssn::text, upper(ssn), concat(ssn, card), coalesce(balance, 1), balance + 1, last4 from customers
select public.customers.ssn, customers.id from public.customers
select count(*), min(ssn), array_agg(card order by id), sum(balance) from customers
select c.ssn, o.total from orders o left join customers c on c.id = o.customer_id where o.total > 30 and c.name like 'name1%'
select x.* from (select id, ssn as s from customers) x join orders o on o.id = x.id
with c as (select * from customers where id in (1, 2)) select ssn, j from c, lateral (select row_to_json(c) ->> 'card' as j) l
with customers as (select * from customers where id = 1) select ssn from customers
with recursive r(id, s) as (select 1, ssn from customers where id = 1 union all select r.id + 1, c.ssn from r join customers c on c.id = r.id + 1 where r.id < 4) select * from r
select ssn from customers union all select name from customers where id = 3
select * from only customers where id = 3
select a, d from customers c (a, b, c, d) where a = 2
select id, name, max(ssn), grouping(id) from customers group by rollup (id, name)
select ssn, lag(card) over (order by id), row_number() over (partition by name order by id) from customers
select encode(ssn::bytea, 'hex'), md5(card), array[ssn, card], json_build_object('a', ssn)::text from customers where id = 4
select case when id = 1 then ssn else name end from customers
select (select ssn from customers where id = o.customer_id) from orders o where id < 4
select exists (select ssn from customers where id = 1), array(select card from customers order by id)
select * from events order by id, at
select secret from events_1 where id = 3
select * from events_2
select * from customers natural join (select 1 as id, 'x' as z) y
select c.id, j.total from (customers c join orders o using (id)) as j (id, b), customers c where j.id = c.id and j.id < 0 or false
select mood, tags, balance from customers where mood = 'ok' and 't1' = any (tags::text[])
select distinct on (name) name, ssn from customers order by name, id
select c.ssn from clean v join customers c on c.id = v.id
select generate_series(1, 2), ssn from customers where id = 1
select n.nspname, c.relname from pg_catalog.pg_class c join pg_namespace n on n.oid = c.relnamespace where c.relname = 'nothing'
select string_agg(ssn, ', ' order by id desc) filter (where id < 4) from customers
values ((select ssn from customers where id = 2))
select * from customers where ssn like 'SECRET-1%'
select schema_to_xml('public', true, false, '')
select database_to_xml(true, false, '')
select * from ts_stat('select to_tsvector(''simple'', ssn) from customers') as x(word)
select histogram_bounds, most_common_vals from pg_stats where tablename = 'customers'
select stavalues1::text from pg_statistic
select * from dirty
update orders set note = 'x' where id = 1 returning (select ssn from customers where id = 1)
insert into orders (id, note) select 1000 + id, ssn from customers returning note
with w as (insert into orders (id, note) select 2000 + id, ssn from customers returning note) select * from w
select customers from customers order by ssn
explain analyze select * from customers where ssn = 'SECRET-1'
explain select * from customers where ssn = 'SECRET-1'
update customers set name = 'x' where id = 3 returning *
update customers set ssn = 'SECRET-1' where id = 2
insert into customers (id, ssn) values (100, 'SECRET-1') on conflict do nothing
delete from orders where exists (select 1 from customers where ssn = 'SECRET-1')
select (select 1 from customers where ssn = 'SECRET-1')
select 1 / (select count(*) from customers where card like 'SECRET-CARD-1%')
select ssn from pg_temp.customers
declare c scroll cursor with hold for select ssn from customers
fetch backward 5 from c
prepare p (int, text) as select ssn from customers where id = $1
execute p (1, 'x'::text, null)
deallocate all
copy customers (id, ssn) to stdout csv header
copy (select ssn from customers) to stdout (format binary)
copy orders (id, total) from stdin where total > 3
explain (analyze, buffers) select ssn from customers
