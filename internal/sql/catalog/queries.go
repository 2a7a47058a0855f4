package catalog

// Every query but the first runs with pg_catalog alone on the path. System
// schemas other than pg_catalog and information_schema are left out: temporary
// and TOAST relations are never bound.

// The version stays text: a cast from text may be the database's own.
const sqlSession = `
SELECT pg_catalog.version(), pg_catalog.current_setting('server_version_num'), pg_catalog.current_database()::pg_catalog.text,
       CURRENT_USER::pg_catalog.text, pg_catalog.current_schemas(true)::pg_catalog.text[]`

// ours are the schemas whose objects are users'.
const ours = `n.nspname <> 'pg_catalog' AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_(toast|temp)'`

const sqlRelations = `
SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text,
       EXISTS (SELECT FROM pg_rewrite w WHERE w.ev_class = c.oid AND w.rulename <> '_RETURN')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname !~ '^pg_(toast|temp)' AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S', 'c')
ORDER BY n.nspname, c.relname`

// A domain is followed to its base, an array to its element.
const sqlColumns = `
WITH RECURSIVE base AS (
  SELECT t.oid, t.oid AS base, -1 AS typmod FROM pg_type t WHERE t.typtype <> 'd'
  UNION ALL
  SELECT t.oid, b.base, CASE WHEN t.typtypmod >= 0 THEN t.typtypmod ELSE b.typmod END
  FROM pg_type t JOIN base b ON b.oid = t.typbasetype WHERE t.typtype = 'd')
SELECT a.attrelid, a.attnum, a.attname::text, b.base, bn.nspname::text, bt.typname::text,
       CASE WHEN a.atttypmod >= 0 THEN a.atttypmod ELSE b.typmod END, et.typtype::text,
       CASE WHEN tn.nspname NOT IN ('pg_catalog', 'information_schema') THEN tn.nspname || '.' || t.typname
            WHEN en.nspname <> 'pg_catalog' THEN en.nspname || '.' || et.typname ELSE '' END,
       coalesce((SELECT x.extname FROM pg_depend d JOIN pg_extension x ON x.oid = d.refobjid
                 WHERE d.classid = 'pg_type'::regclass AND d.objid = et.oid AND d.deptype = 'e'
                   AND d.refclassid = 'pg_extension'::regclass LIMIT 1)::text, ''),
       CASE WHEN a.attcollation <> 0 AND a.attcollation <> bt.typcollation
            THEN (SELECT quote_ident(cn.nspname) || '.' || quote_ident(co.collname)
                  FROM pg_collation co JOIN pg_namespace cn ON cn.oid = co.collnamespace WHERE co.oid = a.attcollation)
            ELSE '' END,
       a.attnotnull, a.attgenerated <> '', has_column_privilege(a.attrelid, a.attnum, 'SELECT')
FROM pg_attribute a
JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_type t ON t.oid = a.atttypid JOIN pg_namespace tn ON tn.oid = t.typnamespace
JOIN base b ON b.oid = a.atttypid JOIN pg_type bt ON bt.oid = b.base JOIN pg_namespace bn ON bn.oid = bt.typnamespace
JOIN pg_type et ON et.oid = CASE WHEN bt.typelem <> 0 AND bt.typlen = -1 AND bt.typcategory = 'A' THEN bt.typelem ELSE bt.oid END
JOIN pg_namespace en ON en.oid = et.typnamespace
WHERE a.attnum > 0 AND NOT a.attisdropped AND n.nspname !~ '^pg_(toast|temp)' AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S', 'c')
ORDER BY a.attrelid, a.attnum`

const sqlGenerated = `
SELECT a.attrelid, a.attname::text, f.attname::text
FROM pg_attribute a JOIN pg_attrdef ad ON ad.adrelid = a.attrelid AND ad.adnum = a.attnum
JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = a.attrelid AND d.refobjsubid > 0
  AND d.refobjsubid <> a.attnum
  AND (d.classid = 'pg_attrdef'::regclass AND d.objid = ad.oid
       OR d.classid = 'pg_class'::regclass AND d.objid = a.attrelid AND d.objsubid = a.attnum)
JOIN pg_attribute f ON f.attrelid = a.attrelid AND f.attnum = d.refobjsubid
WHERE a.attgenerated <> ''
ORDER BY 1, a.attnum, f.attnum`

const sqlInheritance = `SELECT inhrelid, inhparent FROM pg_inherits ORDER BY 1, 2`

// Columns in expressions depend on the table, as the table does on them.
const sqlPartitionKeys = `
SELECT DISTINCT p.partrelid, a.attname::text
FROM pg_partitioned_table p JOIN pg_attribute a ON a.attrelid = p.partrelid AND a.attnum > 0
WHERE a.attnum = ANY (p.partattrs::int2[]) OR EXISTS (
  SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass
    AND d.objid = p.partrelid AND d.refobjid = p.partrelid AND d.objsubid + d.refobjsubid = a.attnum)
ORDER BY 1, 2`

const sqlConstraints = `
SELECT c.conrelid, c.contype::text,
       ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey) ORDER BY a.attnum),
       c.confrelid,
       ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.confrelid AND a.attnum = ANY (c.confkey) ORDER BY a.attnum),
       c.confdeltype IN ('c', 'n', 'd') OR c.confupdtype IN ('c', 'n', 'd')
FROM pg_constraint c WHERE c.conrelid <> 0 AND c.contype IN ('p', 'u', 'x', 'c', 'f') ORDER BY c.conrelid, c.conname`

const sqlIndexes = `
SELECT i.indrelid, ARRAY(
  SELECT DISTINCT a.attname::text FROM pg_attribute a
  WHERE a.attrelid = i.indrelid AND (a.attnum = ANY (i.indkey::int2[]) OR a.attnum IN (
    SELECT d.refobjsubid FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
      AND d.refclassid = 'pg_class'::regclass AND d.refobjid = i.indrelid))
    AND a.attnum > 0 ORDER BY 1)
FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE (i.indisunique OR i.indisexclusion) AND ` + ours + `
ORDER BY i.indrelid, i.indexrelid`

const sqlTriggers = `
SELECT t.tgrelid, t.tgname::text, p.prosecdef, t.tgdeferrable FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
WHERE NOT t.tgisinternal ORDER BY t.tgrelid, t.tgname`

// What a read runs without naming it: the conditions of row security, and what
// the planner folds. Functions that came with the server leave no dependency.
const sqlPolicies = `
SELECT p.polrelid, pg_get_expr(p.polqual, p.polrelid)
FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid
WHERE c.relrowsecurity AND p.polcmd IN ('*', 'r') AND p.polqual IS NOT NULL ORDER BY p.polrelid, p.polname`

const sqlFolded = `
WITH own AS (
  SELECT DISTINCT classid, objid FROM pg_depend WHERE refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass)
    AND classid IN ('pg_class'::regclass, 'pg_constraint'::regclass, 'pg_statistic_ext'::regclass))
SELECT * FROM (
  SELECT i.indrelid, e AS text FROM pg_index i JOIN own ON own.classid = 'pg_class'::regclass AND own.objid = i.indexrelid,
    unnest(ARRAY[pg_get_expr(i.indpred, i.indrelid), pg_get_expr(i.indexprs, i.indrelid)]) e
  UNION SELECT p.partrelid, pg_get_expr(p.partexprs, p.partrelid) FROM pg_partitioned_table p
    JOIN own ON own.classid = 'pg_class'::regclass AND own.objid = p.partrelid WHERE p.partexprs IS NOT NULL
  UNION SELECT c.conrelid, pg_get_expr(c.conbin, c.conrelid) FROM pg_constraint c
    JOIN own ON own.classid = 'pg_constraint'::regclass AND own.objid = c.oid WHERE c.conbin IS NOT NULL AND c.conrelid <> 0
  UNION SELECT s.stxrelid, pg_get_expr(s.stxexprs, s.stxrelid) FROM pg_statistic_ext s
    JOIN own ON own.classid = 'pg_statistic_ext'::regclass AND own.objid = s.oid WHERE s.stxexprs IS NOT NULL) f
WHERE text IS NOT NULL ORDER BY 1, 2`

const sqlViews = `
SELECT c.oid, pg_get_viewdef(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('v', 'm') AND ` + ours + ` ORDER BY c.oid`

// The server notes each column that a view's rule names, and the relation alone
// where it names none.
const sqlViewSources = `
SELECT DISTINCT w.ev_class, d.refobjid, coalesce(a.attname::text, '')
FROM pg_rewrite w JOIN pg_class c ON c.oid = w.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid AND d.refclassid = 'pg_class'::regclass
LEFT JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid AND a.attnum > 0
WHERE c.relkind IN ('v', 'm') AND d.refobjid <> w.ev_class AND ` + ours + `
ORDER BY 1, 2, 3`

// later is what did not come with the server, in pg_catalog too.
func later(oid string) string {
	return `(` + ours + ` OR n.nspname = 'pg_catalog' AND ` + oid + ` >= 16384)`
}

// extension is the extension that object oid of a catalog belongs to.
func extension(class, oid string) string {
	return `coalesce((SELECT x.extname::text FROM pg_depend d JOIN pg_extension x ON x.oid = d.refobjid
  WHERE d.classid = '` + class + `'::regclass AND d.objid = ` + oid + ` AND d.deptype = 'e'
    AND d.refclassid = 'pg_extension'::regclass LIMIT 1), '')`
}

var sqlTypes = `
SELECT n.nspname::text, t.typname::text, CASE WHEN EXISTS (SELECT FROM pg_type e WHERE e.typarray = t.oid) THEN 'a' ELSE t.typtype::text END, ` + extension("pg_type", "t.oid") + `
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace LEFT JOIN pg_class c ON c.oid = t.typrelid
WHERE ` + ours + ` AND (c.oid IS NULL OR c.relkind = 'c') ORDER BY 1, 2`

// A routine has own types when one of its arguments does: elsewhere it is never
// chosen.
var sqlRoutines = `
SELECT n.nspname::text, p.proname::text, oidvectortypes(p.proargtypes), ` + extension("pg_proc", "p.oid") + `,
       EXISTS (SELECT FROM unnest(p.proargtypes::oid[]) u JOIN pg_type t ON t.oid = u JOIN pg_namespace tn ON tn.oid = t.typnamespace
               WHERE tn.nspname <> 'pg_catalog'), p.proretset
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE ` + later("p.oid") + ` ORDER BY 1, 2, p.oid`

var sqlOperators = `
SELECT n.nspname::text, o.oprname::text, ` + extension("pg_operator", "o.oid") + `,
       EXISTS (SELECT FROM pg_type t JOIN pg_namespace tn ON tn.oid = t.typnamespace
               WHERE t.oid IN (o.oprleft, o.oprright) AND tn.nspname <> 'pg_catalog')
FROM pg_operator o JOIN pg_namespace n ON n.oid = o.oprnamespace WHERE ` + later("o.oid") + ` ORDER BY 1, 2, o.oid`

var sqlCasts = `
SELECT format_type(k.castsource, NULL), format_type(k.casttarget, NULL), k.castcontext <> 'e',
       EXISTS (SELECT FROM pg_type t JOIN pg_namespace tn ON tn.oid = t.typnamespace
               WHERE t.oid IN (k.castsource, k.casttarget) AND tn.nspname <> 'pg_catalog'),
       ` + extension("pg_cast", "k.oid") + `
FROM pg_cast k JOIN pg_proc p ON p.oid = k.castfunc JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname <> 'pg_catalog' OR p.oid >= 16384 ORDER BY 1, 2`
