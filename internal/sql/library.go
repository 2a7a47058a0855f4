package sql

import (
	_ "embed"
	"regexp"
	"strings"
)

// What is known of PostgreSQL's own functions, operators, types and catalogs is
// data, beside this file.
var (
	//go:embed curated/functions.txt
	functionsText string
	//go:embed curated/locks.txt
	locksText string
	//go:embed curated/operators.txt
	operatorsText string
	//go:embed curated/types.txt
	typesText string
	//go:embed curated/catalogs.txt
	catalogsText string
	//go:embed curated/information_schema.txt
	informationText string
	//go:embed curated/columns.txt
	columnsText string
)

// vouchedExtensions are extensions whose functions, types and operators only
// compute on their arguments.
const vouchedExtensions = "btree_gin btree_gist citext cube dict_int dict_xsyn earthdistance fuzzystrmatch hstore intarray isn ltree " +
	"pg_trgm pgcrypto seg unaccent uuid-ossp vector"

// aggregates are the functions whose arguments need not be grouped; counting
// are those whose result does not show what they were given.
const (
	aggregateNames = "any_value array_agg avg bit_and bit_or bit_xor bool_and bool_or corr count covar_pop covar_samp every json_agg " +
		"json_agg_strict json_object_agg json_object_agg_strict json_object_agg_unique json_object_agg_unique_strict jsonb_agg " +
		"jsonb_agg_strict jsonb_object_agg jsonb_object_agg_strict jsonb_object_agg_unique jsonb_object_agg_unique_strict max min mode " +
		"percentile_cont percentile_disc range_agg range_intersect_agg regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope " +
		"regr_sxx regr_sxy regr_syy stddev stddev_pop stddev_samp string_agg sum var_pop var_samp variance xmlagg"
	countingNames = "bool_and bool_or count every num_nonnulls num_nulls regr_count starts_with regexp_count regexp_instr regexp_like " +
		"strpos position textlike length char_length character_length octet_length bit_length array_position array_positions " +
		"cardinality array_length pg_column_size"
	// Functions that return rows: how many depends on the arguments.
	rowNames = "aclexplode each skeys svals pgp_armor_headers pg_partition_ancestors pg_partition_tree pg_tablespace_databases generate_series generate_subscripts json_array_elements json_array_elements_text json_each json_each_text " +
		"json_object_keys json_to_recordset jsonb_array_elements jsonb_array_elements_text jsonb_each jsonb_each_text jsonb_object_keys " +
		"jsonb_path_query jsonb_path_query_tz jsonb_to_recordset pg_options_to_table regexp_matches regexp_split_to_table string_to_table unnest"
)

// A library is what the judge knows by name. It is immutable.
type library struct {
	functions   map[string]bool // schema.name
	signatures  map[string]bool // schema.name(integer, text)
	locks       map[string]bool // of pg_catalog: advisory locks
	operators   map[string]bool
	types       map[string]bool
	catalogs    map[string]bool // of pg_catalog, free of values
	information map[string]bool // of information_schema, not free of them
	columns     map[string][]string
	extensions  map[string]bool
	aggregates  map[string]bool
	counting    map[string]bool
	rows        map[string]bool
}

func newLibrary(curated []string) *library {
	l := &library{
		functions: map[string]bool{}, signatures: map[string]bool{}, locks: wordsOf(locksText, "#"), operators: wordsOf(operatorsText, "--"), types: wordsOf(typesText, "#"),
		catalogs: wordsOf(catalogsText, "#"), information: wordsOf(informationText, "#"), columns: map[string][]string{},
		extensions: wordsOf(vouchedExtensions, "#"), aggregates: wordsOf(aggregateNames, "#"), counting: wordsOf(countingNames, "#"),
		rows: wordsOf(rowNames, "#"),
	}
	for f := range wordsOf(functionsText, "#") {
		l.functions["pg_catalog."+f] = true
	}
	for _, f := range curated {
		if strings.HasSuffix(f, ")") {
			l.signatures[signature(f)] = true
		} else {
			l.functions[f] = true
		}
	}
	for line := range strings.Lines(columnsText) {
		name, columns, ok := strings.Cut(line, ":")
		if ok && !strings.HasPrefix(line, "#") {
			l.columns[name] = strings.Fields(columns)
		}
	}
	return l
}

// computes reports whether a clause is part of an expression whose value shows
// what decided: what takes part in it is in the lineage of the result.
func (l *library) computes(clause string) bool {
	switch clause {
	case "a condition", "a comparison", "IS NULL", "CASE", "CASE WHEN", "GREATEST or LEAST", "DISTINCT in an aggregate":
		return true
	}
	return l.counting[strings.TrimSuffix(clause, "()")]
}

// curatedName is schema.name or schema.name(types).
var curatedName = regexp.MustCompile(`^[^.()\s]+\.[^.()\s]+(\([^()]*\))?$`)

// signature spells schema.name(types) as the catalog does.
func signature(f string) string {
	name, types, _ := strings.Cut(strings.TrimSuffix(f, ")"), "(")
	var list []string
	for t := range strings.SplitSeq(types, ",") {
		if t = strings.Join(strings.Fields(t), " "); t != "" {
			list = append(list, t)
		}
	}
	return strings.TrimSpace(name) + "(" + strings.Join(list, ", ") + ")"
}

// wordsOf reads words separated by white space; lines that start with comment
// are left out.
func wordsOf(text, comment string) map[string]bool {
	words := map[string]bool{}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, comment) {
			continue
		}
		for word := range strings.FieldsSeq(line) {
			words[word] = true
		}
	}
	return words
}
