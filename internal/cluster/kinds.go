package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
)

// discovery asks for all resources of an API server at once.
const discovery = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"

// A kind is a resource that can be listed.
type kind struct {
	group, version, resource string
	namespaced               bool
}

// String names it as kubectl does.
func (k kind) String() string {
	if k.group == "" {
		return k.resource
	}
	return k.resource + "." + k.group
}

// path is that of all of them, or of those in a namespace.
func (k kind) path(namespace string) string {
	path := "/apis/" + k.group + "/" + k.version
	if k.group == "" {
		path = "/api/" + k.version
	}
	if namespace != "" && k.namespaced {
		path += "/namespaces/" + namespace
	}
	return path + "/" + k.resource
}

// A groupList is what aggregated discovery answers.
type groupList struct {
	Kind  string `json:"kind"`
	Items []struct {
		Metadata struct {
			Name string `json:"name"`
		} `json:"metadata"`
		Versions []struct {
			Version   string `json:"version"`
			Resources []struct {
				Resource string   `json:"resource"`
				Scope    string   `json:"scope"`
				Verbs    []string `json:"verbs"`
			} `json:"resources"`
		} `json:"versions"`
	} `json:"items"`
}

// kinds are the resources that can be listed, each in the version that its
// server prefers. Events are left out: they own nothing and go by themselves.
func (c *Conn) kinds(ctx context.Context) (out []kind, err error) {
	for _, root := range []string{"/api", "/apis"} {
		got, err := c.do(ctx, call{method: http.MethodGet, path: root, accept: discovery})
		if err != nil {
			return nil, err
		}
		var list groupList
		if got.status != http.StatusOK || json.Unmarshal(got.body, &list) != nil || list.Kind != "APIGroupDiscoveryList" {
			return nil, errors.New("the API server does not list its resources")
		}
		for _, g := range list.Items {
			if len(g.Versions) == 0 {
				continue
			}
			for _, r := range g.Versions[0].Resources {
				if slices.Contains(r.Verbs, "list") && r.Resource != "events" {
					out = append(out, kind{g.Metadata.Name, g.Versions[0].Version, r.Resource, strings.EqualFold(r.Scope, "Namespaced")})
				}
			}
		}
	}
	return out, nil
}

// metadataOnly lists objects without what is in them.
const metadataOnly = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"

// An owned is the metadata of one object.
type owned struct {
	what       string   // its kind
	Namespace  string   `json:"namespace"`
	Name       string   `json:"name"`
	UID        string   `json:"uid"`
	Finalizers []string `json:"finalizers"`
	Deleted    string   `json:"deletionTimestamp"`
	Owners     []owner  `json:"ownerReferences"`
}

// An owner goes, and takes along what names no other.
type owner struct {
	UID string `json:"uid"`
}

// A metadataList is a list of such.
type metadataList struct {
	Metadata struct {
		Continue  string `json:"continue"`
		Remaining int    `json:"remainingItemCount"`
	} `json:"metadata"`
	Items []struct {
		Metadata owned `json:"metadata"`
	} `json:"items"`
}
