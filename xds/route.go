package xds

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	setstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

const routeConfig = "https"

// The context extensions that a route gives to the authorizer with each Check.
const (
	contextResource   = "resource"   // name of the resource; absent: there is none at this path
	contextPrefix     = "prefix"     // what the route takes off the path
	contextHost       = "host"       // Host header that the target receives
	contextBody       = "body"       // "whole" when the Check holds the whole request body
	contextCredential = "credential" // header that is injected later, whatever the client sends
	contextKind       = "kind"       // "kubernetes" when the target is an API server
	contextStream     = "stream"     // "yes" when the request leads to the session service, and nowhere else
)

// sshKind is said of the route of CONNECT.
const sshKind = "ssh"

// kubernetesKind is said of every route below /k8s/.
const kubernetesKind = "kubernetes"

// upgrades are what Kubernetes streams by.
var upgrades = []string{"websocket", "SPDY/3.1"}

// routes is what the HTTPS listener serves: targets below /http/, the API, and
// a problem document for everything else.
func routes(c Config) *routev3.RouteConfiguration {
	var rs []*routev3.Route
	if c.connects() {
		rs = append(rs, connect())
	}
	for _, r := range c.HTTP {
		prefix := "/http/" + r.Name
		if r.Kubernetes {
			prefix = "/k8s/" + r.Name
			r.ReadBody = true
			rs = append(rs, r.upgradeRoute(prefix), r.quietRoute(prefix, "watch"), r.quietRoute(prefix, "follow"))
		}
		rs = append(rs,
			r.route(&routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: prefix + "/"}}, prefix),
			r.route(&routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: prefix}}, prefix))
	}
	if c.Sockets.API != "" {
		rs = append(rs, api("api", &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: "/api/v1"}}),
			api("oauth", &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: "/oauth"}}),
			api("console", &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_PathSeparatedPrefix{PathSeparatedPrefix: "/console"}}))
		for _, document := range []string{"chaperone", "oauth-authorization-server"} {
			rs = append(rs, api(document, &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: "/.well-known/" + document}}))
		}
	}
	return &routev3.RouteConfiguration{
		Name: routeConfig,
		VirtualHosts: []*routev3.VirtualHost{{
			Name:    "gateway",
			Domains: []string{"*"},
			Routes:  append(rs, unknownResource("/http/", ""), unknownResource("/k8s/", kubernetesKind), nothing()),
		}},
	}
}

// route leads to one target. What the client says of itself stays behind: the
// token, and cookies, which nobody judges.
func (r HTTPResource) route(match *routev3.RouteMatch, prefix string) *routev3.Route {
	t, _ := r.target() // validate has seen it
	check := &extauthzv3.CheckSettings{ContextExtensions: map[string]string{
		contextResource: r.Name,
		contextPrefix:   prefix,
		contextHost:     t.hostHeader,
	}}
	if r.Credential != nil {
		check.ContextExtensions[contextCredential] = r.Credential.Header
	}
	if r.Kubernetes {
		check.ContextExtensions[contextKind] = kubernetesKind
	}
	if r.stream {
		check.ContextExtensions[contextStream] = "yes"
	}
	if r.ReadBody {
		check.ContextExtensions[contextBody] = "whole"
		check.WithRequestBody = &extauthzv3.BufferSettings{MaxRequestBytes: r.maxBody()}
	}
	check.DisableRequestBodyBuffering = !r.ReadBody
	return &routev3.Route{
		Name:  r.routeName(),
		Match: match,
		Action: &routev3.Route_Route{Route: &routev3.RouteAction{
			ClusterSpecifier:     &routev3.RouteAction_Cluster{Cluster: resourceCluster(r.Name)},
			PrefixRewrite:        "/",
			HostRewriteSpecifier: &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: t.hostHeader},
			Timeout:              seconds(0), // streams may last; the idle timeout and the session bound them
		}},
		RequestHeadersToRemove:  []string{"authorization", "proxy-authorization", "cookie", "x-envoy-external-address", "x-forwarded-client-cert"},
		ResponseHeadersToRemove: []string{"set-cookie"},
		TypedPerFilterConfig: map[string]*anypb.Any{
			extAuthzFilter: pack(&extauthzv3.ExtAuthzPerRoute{
				Override: &extauthzv3.ExtAuthzPerRoute_CheckSettings{CheckSettings: check}}),
		},
	}
}

// kubernetesRoute begins the names of routes to API servers: Envoy's own answers
// there are Status objects.
const kubernetesRoute = "k8s/"

func (r HTTPResource) routeName() string {
	if r.Kubernetes {
		return kubernetesRoute + r.Name
	}
	return resourceCluster(r.Name)
}

// maxBody is the largest body that the authorizer is shown.
func (r HTTPResource) maxBody() uint32 {
	if r.Kubernetes {
		return MaxKubernetesBody
	}
	return MaxBody
}

// upgradeRoute is for requests that ask to leave HTTP: they have no body to wait
// for, and lead to the session service, which masks and records what it carries
// and takes nothing that the authorizer did not let through.
func (r HTTPResource) upgradeRoute(prefix string) *routev3.Route {
	r.ReadBody = false
	r.stream = true
	route := r.route(&routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: prefix + "/"},
		Headers: []*routev3.HeaderMatcher{{Name: "upgrade", HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}}}}, prefix)
	route.TypedPerFilterConfig[extProcFilter] = noProcessing()
	route.GetRoute().ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: kubernetesCluster}
	route.GetRoute().IdleTimeout = seconds(idleSession)
	for _, name := range upgrades {
		route.GetRoute().UpgradeConfigs = append(route.GetRoute().UpgradeConfigs, &routev3.RouteAction_UpgradeConfig{UpgradeType: name})
	}
	return route
}

// connect is for all that clients CONNECT to, whatever they name: it leads to the
// session service of SSH and nowhere else. The authorizer reads which host is
// meant, and gives the ticket without which the service serves nobody.
func connect() *routev3.Route {
	return &routev3.Route{
		Name:  "connect",
		Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_ConnectMatcher_{ConnectMatcher: &routev3.RouteMatch_ConnectMatcher{}}},
		Action: &routev3.Route_Route{Route: &routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: connectCluster},
			Timeout:          seconds(0),
			IdleTimeout:      seconds(idleSession),
			UpgradeConfigs:   []*routev3.RouteAction_UpgradeConfig{{UpgradeType: "CONNECT", ConnectConfig: &routev3.RouteAction_UpgradeConfig_ConnectConfig{}}},
		}},
		TypedPerFilterConfig: map[string]*anypb.Any{
			extAuthzFilter: pack(&extauthzv3.ExtAuthzPerRoute{Override: &extauthzv3.ExtAuthzPerRoute_CheckSettings{
				CheckSettings: &extauthzv3.CheckSettings{DisableRequestBodyBuffering: true, ContextExtensions: map[string]string{contextKind: sshKind}}}}),
			setFilterStateFilter: pack(&routev3.FilterConfig{Config: pack(&setstatev3.Config{})}),
			extProcFilter:        noProcessing(), // bytes of SSH: the session service reads them
		},
	}
}

// quietRoute is for watches and logs that are followed, which their query
// parameter tells: nothing may come for as long as the session lasts.
func (r HTTPResource) quietRoute(prefix, parameter string) *routev3.Route {
	route := r.route(&routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: prefix + "/"},
		QueryParameters: []*routev3.QueryParameterMatcher{{Name: parameter,
			QueryParameterMatchSpecifier: &routev3.QueryParameterMatcher_PresentMatch{PresentMatch: true}}}}, prefix)
	route.GetRoute().IdleTimeout = seconds(idleSession)
	return route
}

// api leads to chaperone's own API, token service, documents or web console,
// which check tokens and cookies themselves.
func api(name string, match *routev3.RouteMatch) *routev3.Route {
	return &routev3.Route{
		Name:  name,
		Match: match,
		Action: &routev3.Route_Route{Route: &routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: apiCluster},
			Timeout:          seconds(0),
		}},
		// x-forwarded-for tells another address than the PROXY header of the
		// PostgreSQL listener when a client is on loopback.
		RequestHeadersToAdd: []*corev3.HeaderValueOption{{
			Header:       &corev3.HeaderValue{Key: clientHeader, Value: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD}},
		TypedPerFilterConfig: unguarded(),
	}
}

// clientHeader tells the API where a request comes from.
const clientHeader = "x-chaperone-client"

// unknownResource answers below prefix where no target is. The authorizer is
// asked first, and refuses: whoever has no token learns nothing of which
// resources there are.
func unknownResource(prefix, kind string) *routev3.Route {
	check := &extauthzv3.CheckSettings{DisableRequestBodyBuffering: true}
	if kind != "" {
		check.ContextExtensions = map[string]string{contextKind: kind}
	}
	filters := map[string]*anypb.Any{
		extAuthzFilter: pack(&extauthzv3.ExtAuthzPerRoute{Override: &extauthzv3.ExtAuthzPerRoute_CheckSettings{CheckSettings: check}}),
		extProcFilter:  noProcessing(),
	}
	return &routev3.Route{
		Name:                 "unknown-resource",
		Match:                &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: prefix}},
		Action:               notFound(),
		TypedPerFilterConfig: filters,
	}
}

func nothing() *routev3.Route {
	return &routev3.Route{
		Name:                 "nothing",
		Match:                &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		Action:               notFound(),
		TypedPerFilterConfig: unguarded(),
	}
}

// notFound is given its body by the local reply rules.
func notFound() *routev3.Route_DirectResponse {
	return &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: 404}}
}

// unguarded turns decision and processing off: only for routes that do not lead
// to a target.
func unguarded() map[string]*anypb.Any {
	return map[string]*anypb.Any{
		extAuthzFilter: pack(&extauthzv3.ExtAuthzPerRoute{Override: &extauthzv3.ExtAuthzPerRoute_Disabled{Disabled: true}}),
		extProcFilter:  noProcessing(),
	}
}

func noProcessing() *anypb.Any {
	return pack(&extprocv3.ExtProcPerRoute{Override: &extprocv3.ExtProcPerRoute_Disabled{Disabled: true}})
}
