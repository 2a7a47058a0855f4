package access

import "slices"

// K8s is one request to a Kubernetes API server, in the words of its own
// authorization (verb, resource, namespace, name) where it is about a resource.
// Otherwise Resource is empty and Path says what it is about.
type K8s struct {
	Verb        string `json:"verb"`            // get, list, watch, create, update, patch, delete, deletecollection; of a path: the method in lower case
	Group       string `json:"group,omitempty"` // "" is the core group
	Version     string `json:"version,omitempty"`
	Resource    string `json:"resource,omitempty"` // plural, as in paths: pods
	Subresource string `json:"subresource,omitempty"`
	Namespace   string `json:"namespace,omitempty"` // "" is none, or all of them
	Name        string `json:"name,omitempty"`      // of an object that is created: the body's

	Method string              `json:"method"`
	Path   string              `json:"path"` // as the target receives it, percent-encoding undone
	Query  map[string][]string `json:"query,omitempty"`

	LabelSelector string   `json:"label_selector,omitempty"`
	FieldSelector string   `json:"field_selector,omitempty"`
	DryRun        bool     `json:"dry_run,omitempty"` // nothing is stored
	ReadOnly      bool     `json:"read_only"`         // known to change nothing, and no way into a container
	Powers        []string `json:"powers,omitempty"`  // see the Power constants
	Command       []string `json:"command,omitempty"` // of exec
	// Container of exec and attach; "" is the pod's default. Terminal and Stdin
	// say that they want a terminal, and to be written to.
	Container string `json:"container,omitempty"`
	Terminal  bool   `json:"terminal,omitempty"`
	Stdin     bool   `json:"stdin,omitempty"`

	ContentType string    `json:"content_type,omitempty"`
	BodyState   BodyState `json:"body_state,omitempty"`
	BodyDigest  string    `json:"body_digest,omitempty"`
	BodyBytes   int64     `json:"body_bytes,omitempty"`
	// Body is the decoded body, in which the values of Secrets are masked.
	Body any `json:"body,omitempty"`
	// Object is what the body would make of an object; never nil in a request
	// that is decided on.
	Object *K8sObject `json:"object,omitempty"`
}

// String names the request in a few words: "create pods shop/web".
func (k *K8s) String() string {
	if k.Resource == "" {
		return k.Verb + " " + k.Path
	}
	what := k.Verb + " " + k.Resource
	if k.Group != "" {
		what += "." + k.Group
	}
	if k.Subresource != "" {
		what += "/" + k.Subresource
	}
	switch {
	case k.Namespace != "" && k.Name != "":
		what += " " + k.Namespace + "/" + k.Name
	case k.Namespace != "":
		what += " in " + k.Namespace
	case k.Name != "":
		what += " " + k.Name
	}
	return what
}

// LeavesHTTP reports whether the request is served by another protocol, to which
// the connection is handed over: exec, attach and port-forward.
func (k *K8s) LeavesHTTP() bool {
	return slices.ContainsFunc(k.Powers, func(power string) bool {
		return power == PowerExec || power == PowerAttach || power == PowerPortForward
	})
}

// What a request can do beyond changing the object that it names. One request
// may have several.
const (
	PowerExec        = "exec"                 // runs a command in a container
	PowerAttach      = "attach"               // joins the terminal of a process
	PowerPortForward = "port-forward"         // opens connections into a pod
	PowerProxy       = "proxy"                // sends requests to pods, services or nodes through the API server
	PowerEphemeral   = "ephemeral-containers" // puts a container into a running pod
	PowerToken       = "token"                // obtains a service account's token
	PowerBindPod     = "bind-pod"             // places a pod on a node, past the scheduler
	PowerEvict       = "evict"                // removes a pod
	PowerApprove     = "approve-certificate"  // makes a certificate request valid
	PowerSign        = "sign-certificate"     // issues the certificate
	PowerAdmission   = "admission"            // changes what is checked or altered in every write
	PowerAggregation = "aggregation"          // hands part of the API to another server
	PowerBind        = "bind"                 // gives somebody a role
	PowerEscalate    = "escalate"             // changes what a role may do
	PowerImpersonate = "impersonate"          // gives a role that may act as others
)

// K8sObject are facts of the object in a request body. Those in Unknown cannot
// be told from the body alone, as those of a patch: it changes an object that
// was not seen. Privileged is true whenever the body says so.
type K8sObject struct {
	Kind           string   `json:"kind,omitempty"`
	Type           string   `json:"type,omitempty"`            // of a Secret or a Service
	Privileged     bool     `json:"privileged,omitempty"`      // a privileged container
	HostNamespaces []string `json:"host_namespaces,omitempty"` // network, pid, ipc
	HostPaths      []string `json:"host_paths,omitempty"`      // folders of the node
	Capabilities   []string `json:"capabilities,omitempty"`    // added
	Images         []string `json:"images,omitempty"`
	ServiceAccount string   `json:"service_account,omitempty"` // "" is the namespace's default
	Secrets        []string `json:"secrets,omitempty"`         // Secrets that its containers can read
	Replicas       int64    `json:"replicas,omitempty"`
	Verbs          []string `json:"verbs,omitempty"` // that a role gives
	Unknown        []string `json:"unknown,omitempty"`
}

// K8sFacts are the names of the facts, as Unknown and conditions name them.
func K8sFacts() []string {
	return []string{"kind", "type", "privileged", "host_namespaces", "host_paths", "capabilities", "images", "service_account",
		"secrets", "replicas", "verbs"}
}

// Knows reports whether the fact of that name can be told.
func (o *K8sObject) Knows(fact string) bool {
	return o != nil && (!slices.Contains(o.Unknown, fact) || fact == "privileged" && o.Privileged)
}
