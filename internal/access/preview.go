package access

import "time"

// A Preview is what the target says that a held request would do, asked before
// anybody granted it. It is an estimate: the target may be another by the time
// of the grant, so no digest covers it. Values are masked.
type Preview struct {
	Taken   time.Time `json:"taken"`
	None    string    `json:"none,omitempty"`    // why there is no preview, or not all of it
	Creates bool      `json:"creates,omitempty"` // the object is not there yet
	Changes []Change  `json:"changes,omitempty"` // to the object
	Removes []Removal `json:"removes,omitempty"` // what goes, or goes along
	Notes   []string  `json:"notes,omitempty"`   // what else there is to know of it
	More    int       `json:"more,omitempty"`    // changes that are not listed
}

// A Change is one place of an object. Before and After are JSON, shortened; ""
// says that nothing is there.
type Change struct {
	Path   string `json:"path"` // spec.containers[web].image
	Before string `json:"before,omitempty"`
	After  string `json:"after,omitempty"`
	Masked bool   `json:"masked,omitempty"` // it changes, and a mask hides how
}

// A Removal is what of one kind would be deleted.
type Removal struct {
	What  string   `json:"what"` // pods, deployments.apps
	Count int      `json:"count"`
	Names []string `json:"names,omitempty"` // the first of them
}
