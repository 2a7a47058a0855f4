-- The database of the differential test: what a statement must not run is here
-- to be run. Whatever calls spy() leaves a row in audit.
CREATE ROLE app LOGIN PASSWORD 'app';
GRANT pg_read_all_data, pg_write_all_data, pg_read_server_files, pg_write_server_files, pg_signal_backend, pg_checkpoint TO app;
GRANT CREATE ON SCHEMA public TO app;
CREATE TABLE audit (id serial PRIMARY KEY, what text);
CREATE FUNCTION spy(what text) RETURNS int LANGUAGE plpgsql SECURITY DEFINER AS
  $$ BEGIN INSERT INTO public.audit (what) VALUES (what); RETURN 1; END $$;
-- Declared immutable, so that the planner runs it; what it calls is not.
CREATE FUNCTION sly(i int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM public.spy('sly'); RETURN i; END $$;

CREATE SCHEMA crm;
CREATE SCHEMA hidden;
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE DOMAIN tag AS text CHECK (spy(value) = 1);
CREATE DOMAIN label AS tag;
CREATE TYPE pair AS (a int, t tag);
CREATE TYPE place;
CREATE FUNCTION place_in(cstring) RETURNS place LANGUAGE internal IMMUTABLE STRICT AS 'textin';
CREATE FUNCTION place_out(place) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
CREATE TYPE place (INPUT = place_in, OUTPUT = place_out, LIKE = text);
CREATE FUNCTION gap(int, int) RETURNS float8 LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM public.spy('gap'); RETURN $1 - $2; END $$;
CREATE TYPE span AS RANGE (SUBTYPE = int, SUBTYPE_DIFF = gap);

CREATE TABLE customers (id int PRIMARY KEY, name text, email text, ssn varchar(15), card text,
  last4 text GENERATED ALWAYS AS (right(ssn, 4)) STORED, UNIQUE (name, ssn), UNIQUE (ssn));
CREATE TABLE orders (id int PRIMARY KEY, customer_id int REFERENCES customers (id), customer_ssn text, total numeric, at timestamptz, note text);
CREATE TABLE events (id int, secret text) PARTITION BY RANGE (id);
CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (0) TO (100);
CREATE TABLE people (id int PRIMARY KEY, ssn text, last4 text GENERATED ALWAYS AS (right(ssn, 4)) STORED, name text);
CREATE TABLE ruled (id int);
CREATE RULE also AS ON UPDATE TO ruled DO ALSO INSERT INTO audit (what) VALUES ('rule');
CREATE TABLE audited (id int, note text);
CREATE TABLE typed (id int, mood mood, tag tag, place place, pair pair, span span, tags tag[]);
CREATE TABLE crm.customers (id int, ssn text);
CREATE TABLE documents (id int, j jsonb, x xml, v tsvector, b bytea, a int[], r int4range, u uuid, i inet, p point, d date, n interval, f float8);
CREATE SEQUENCE seq;

INSERT INTO customers SELECT i, 'name' || i, 'n' || i || '@example.com', 'ssn-' || i, 'card-' || i FROM generate_series(1, 20) i;
INSERT INTO orders SELECT i, 1 + i % 20, 'ssn-' || i, i * 3, '2025-01-01', 'note' || i FROM generate_series(1, 40) i;
INSERT INTO events SELECT i, 'event' || i FROM generate_series(1, 20) i;
INSERT INTO people (id, ssn, name) VALUES (1, 'ssn-1', 'one'), (2, 'ssn-2', 'two');
INSERT INTO ruled VALUES (1);
INSERT INTO audited VALUES (1, 'x');
INSERT INTO typed VALUES (1, 'ok', 't1', 'here', ROW (1, 't'), '[1,5)', ARRAY['t']), (2, 'sad', 't2', 'there', ROW (2, 't'), '[2,9)', ARRAY['t']);
INSERT INTO crm.customers VALUES (1, 'ssn-1'), (2, 'ssn-2');
INSERT INTO documents VALUES (1, '{"a": [1, {"b": "x"}]}', NULL, 'fat cat', '\x0102', '{1,2}', '[1,4)',
  'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '10.0.0.1/24', '(1,2)', '2025-01-01', '1 day', 1.5);

CREATE FUNCTION mystery(int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM public.spy('mystery'); RETURN $1; END $$;
CREATE FUNCTION vouched(anyelement) RETURNS anyelement LANGUAGE sql IMMUTABLE AS 'SELECT $1';
CREATE FUNCTION overloaded(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1';
CREATE FUNCTION overloaded(text) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN public.spy($1); END $$;
-- The names of built-in functions, with arguments that fit better or are of own types.
CREATE FUNCTION upper(int) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM public.spy('upper'); RETURN ''; END $$;
CREATE FUNCTION hidden.lower(text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM public.spy('lower'); RETURN ''; END $$;
CREATE FUNCTION length(customers) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN public.spy('length'); END $$;
CREATE FUNCTION initials(customers) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM public.spy('initials'); RETURN ''; END $$;
CREATE FUNCTION concat(mood, mood) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM public.spy('concat'); RETURN ''; END $$;
CREATE FUNCTION abs(place) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN public.spy('abs'); END $$;
CREATE FUNCTION pg_catalog.reverse(int) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM public.spy('reverse'); RETURN ''; END $$;
CREATE AGGREGATE tally(int) (SFUNC = int4pl, STYPE = int, INITCOND = '0', FINALFUNC = mystery);
CREATE FUNCTION keep(place, place) RETURNS place LANGUAGE plpgsql AS $$ BEGIN PERFORM public.spy('keep'); RETURN $2; END $$;
CREATE AGGREGATE max(place) (SFUNC = keep, STYPE = place);

CREATE FUNCTION compare(int, int) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN PERFORM public.spy('~~~'); RETURN true; END $$;
CREATE OPERATOR ~~~ (LEFTARG = int, RIGHTARG = int, FUNCTION = compare);
CREATE FUNCTION differs(mood, mood) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN PERFORM public.spy('<>'); RETURN true; END $$;
CREATE OPERATOR <> (LEFTARG = mood, RIGHTARG = mood, FUNCTION = differs);
CREATE FUNCTION joined(tag, tag) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM public.spy('||'); RETURN ''; END $$;
CREATE OPERATOR || (LEFTARG = tag, RIGHTARG = tag, FUNCTION = joined);
CREATE FUNCTION below(customers, int) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN PERFORM public.spy('<='); RETURN true; END $$;
CREATE OPERATOR <= (LEFTARG = customers, RIGHTARG = int, FUNCTION = below);
CREATE FUNCTION rank_of(mood) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN public.spy('cast'); END $$;
CREATE CAST (mood AS int) WITH FUNCTION rank_of (mood) AS IMPLICIT;
CREATE FUNCTION address(place) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM public.spy('cast'); RETURN ''; END $$;
CREATE CAST (place AS text) WITH FUNCTION address (place) AS ASSIGNMENT;

CREATE VIEW clean AS SELECT id, total FROM orders;
CREATE VIEW dirty AS SELECT id, (c.*)::text AS s FROM customers c;
CREATE VIEW over AS SELECT id FROM dirty;
CREATE VIEW calls AS SELECT id, mystery(id) AS m FROM orders;
CREATE VIEW calls_below AS SELECT id FROM (SELECT id, m FROM calls OFFSET 0) c WHERE m > 0;
CREATE VIEW numbers AS SELECT id, nextval('seq') AS n FROM orders;
CREATE MATERIALIZED VIEW kept AS SELECT id, total FROM orders;
CREATE VIEW diverted AS SELECT id, note FROM audited;
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM public.spy('trigger'); RETURN NULL; END $$;
CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON audited FOR EACH ROW EXECUTE FUNCTION note();
CREATE TRIGGER instead INSTEAD OF UPDATE ON diverted FOR EACH ROW EXECUTE FUNCTION note();

-- What runs without being named: row security, and what the planner folds.
CREATE TABLE guarded (id int, note text);
INSERT INTO guarded VALUES (1, 'x'), (2, 'y');
ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
CREATE POLICY watch ON guarded USING (spy('policy') = 1);
CREATE TABLE tenants (id int, tenant text);
INSERT INTO tenants VALUES (1, 'x');
ALTER TABLE tenants ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON tenants USING (tenant IS DISTINCT FROM current_setting('app.tenant', true));
CREATE TABLE counted (id int);
INSERT INTO counted VALUES (1);
ALTER TABLE counted ENABLE ROW LEVEL SECURITY;
CREATE POLICY counting ON counted USING (nextval('seq') > 0);
CREATE TABLE indexed (id int, v int);
INSERT INTO indexed SELECT i, i FROM generate_series(1, 50) i;
CREATE INDEX ON indexed (v) WHERE sly(1) > 0;
CREATE TABLE checked (id int, v int CHECK (sly(2) > 0)) PARTITION BY RANGE (id);
CREATE TABLE checked_1 PARTITION OF checked FOR VALUES FROM (0) TO (10);
INSERT INTO checked VALUES (1, 1), (2, 2);
CREATE TABLE measured (id int, v int);
INSERT INTO measured SELECT i, i FROM generate_series(1, 50) i;
CREATE STATISTICS measures ON id, (v + sly(3)) FROM measured;

CREATE FOREIGN DATA WRAPPER elsewhere;
CREATE SERVER far FOREIGN DATA WRAPPER elsewhere;
CREATE FOREIGN TABLE remote (id int) SERVER far;
SELECT lo_create(4242);

GRANT USAGE ON SCHEMA crm, hidden TO app;
GRANT ALL ON ALL TABLES IN SCHEMA public, crm TO app;
GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO app;
