package cluster

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"chaperone.dev/chaperone/internal/access"
)

// Bounds on what a reviewer is shown of a change.
const (
	maxChanges = 200
	maxValue   = 200 // bytes of a value's JSON
	maxPath    = 300
)

// bookkeeping of the API server and of kubectl says nothing about the change.
var bookkeeping = map[string]bool{
	"metadata.managedFields": true, "metadata.resourceVersion": true, "metadata.generation": true, "metadata.uid": true,
	"metadata.creationTimestamp": true, `metadata.annotations["kubectl.kubernetes.io/last-applied-configuration"]`: true,
}

// A version is an object, and the same as it may be shown. absent is no object.
type version struct{ real, shown any }

// absent is neither a value nor null.
type nothing struct{}

var absent = version{nothing{}, nothing{}}

func (v version) is() bool { return v.real != nothing{} }

// differences lists what leads from one version of an object to another, by
// their real values, and shows the masked ones.
func differences(before, after version) (changes []access.Change, more int) {
	d := &differ{}
	d.compare("", before, after)
	return d.changes, d.more
}

type differ struct {
	changes []access.Change
	more    int
}

func (d *differ) compare(path string, before, after version) {
	if bookkeeping[path] || reflect.DeepEqual(before.real, after.real) {
		return
	}
	a, aObject := members(before)
	b, bObject := members(after)
	if (aObject || !before.is()) && (bObject || !after.is()) {
		names := maps.Clone(a)
		maps.Copy(names, b)
		if len(names) > 0 {
			for _, name := range slices.Sorted(maps.Keys(names)) {
				d.compare(below(path, name), or(a, name), or(b, name))
			}
			return
		}
	}
	x, xList := elements(before)
	y, yList := elements(after)
	if (xList || !before.is()) && (yList || !after.is()) && len(x)+len(y) > 0 {
		d.lists(path, x, y)
		return
	}
	d.add(path, before, after)
}

// lists compares by name where every element has one of its own, else by
// position.
func (d *differ) lists(path string, a, b []version) {
	x, xNamed := byName(a)
	y, yNamed := byName(b)
	if !xNamed || !yNamed {
		for i := range max(len(a), len(b)) {
			d.compare(path+"["+strconv.Itoa(i)+"]", at(a, i), at(b, i))
		}
		return
	}
	var order []string // of those in both
	for _, e := range b {
		name := nameOf(e)
		if old, ok := x[name]; ok {
			order = append(order, name)
			d.compare(path+"["+name+"]", old, y[name])
		} else {
			d.compare(path+"["+name+"]", absent, y[name])
		}
	}
	var was []string
	for _, e := range a {
		name := nameOf(e)
		if _, ok := y[name]; ok {
			was = append(was, name)
		} else {
			d.compare(path+"["+name+"]", e, absent)
		}
	}
	if !slices.Equal(was, order) {
		d.put(access.Change{Path: path, Before: "in the order " + strings.Join(was, ", "), After: "in the order " + strings.Join(order, ", ")})
	}
}

func (d *differ) add(path string, before, after version) {
	c := access.Change{Path: path, Before: text(before), After: text(after)}
	// Cut to the same, or masked to the same: it changes all the same.
	c.Masked = reflect.DeepEqual(before.shown, after.shown) || masked(before) || masked(after)
	d.put(c)
}

func (d *differ) put(c access.Change) {
	if len(d.changes) == maxChanges {
		d.more++
		return
	}
	c.Path, c.Before, c.After = cut(c.Path, maxPath), cut(c.Before, maxValue), cut(c.After, maxValue)
	d.changes = append(d.changes, c)
}

func masked(v version) bool { return v.is() && !reflect.DeepEqual(v.real, v.shown) }

// text is a value as it may be shown.
func text(v version) string {
	if !v.is() {
		return ""
	}
	b, err := json.Marshal(v.shown)
	if err != nil { // it came from JSON
		return "?"
	}
	return string(b)
}

func cut(s string, most int) string {
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + fmt.Sprintf("… (%d bytes)", len(s))
	}
	return s
}

// members are those of an object. What a mask left nothing of is shown by the
// mask.
func members(v version) (map[string]version, bool) {
	real, ok := v.real.(map[string]any)
	if !ok {
		return map[string]version{}, false
	}
	shown, _ := v.shown.(map[string]any)
	out := make(map[string]version, len(real))
	for name, value := range real {
		one := version{value, hidden}
		if s, ok := shown[name]; ok {
			one.shown = s
		}
		out[name] = one
	}
	return out, true
}

func elements(v version) ([]version, bool) {
	real, ok := v.real.([]any)
	if !ok {
		return nil, false
	}
	shown, _ := v.shown.([]any)
	out := make([]version, len(real))
	for i, value := range real {
		out[i] = version{value, hidden}
		if i < len(shown) {
			out[i].shown = shown[i]
		}
	}
	return out, true
}

func or(of map[string]version, name string) version {
	if v, ok := of[name]; ok {
		return v
	}
	return absent
}

func at(list []version, i int) version {
	if i < len(list) {
		return list[i]
	}
	return absent
}

// nameOf is the name by which an element of a list is shown; "" is none.
func nameOf(v version) string {
	shown, _ := v.shown.(map[string]any)
	name, _ := shown["name"].(string)
	return name
}

func byName(list []version) (map[string]version, bool) {
	out := make(map[string]version, len(list))
	for _, e := range list {
		name := nameOf(e)
		if _, twice := out[name]; twice || name == "" {
			return nil, false
		}
		out[name] = e
	}
	return out, true
}

// below is the path of a member.
func below(path, name string) string {
	plain := name != "" && !strings.ContainsFunc(name, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
	})
	switch {
	case !plain:
		return path + "[" + strconv.Quote(name) + "]"
	case path == "":
		return name
	}
	return path + "." + name
}
