//go:build deps

package deps

import (
	_ "cel.dev/cel-go/cel"
	_ "github.com/coreos/go-oidc/v3/oidc"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	_ "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	_ "github.com/jackc/pgx/v5"
	_ "github.com/lestrrat-go/jwx/v2/jws"
	_ "github.com/pires/go-proxyproto"
	_ "github.com/prometheus/client_golang/prometheus/promhttp"
	_ "github.com/redis/go-redis/v9"
	_ "github.com/rogpeppe/go-internal/testscript"
	_ "github.com/spf13/cobra"
	_ "github.com/wasilibs/go-pgquery"
	_ "github.com/pganalyze/pg_query_go/v6"
	_ "go.etcd.io/bbolt"
	_ "go.opentelemetry.io/otel/sdk/trace"
	_ "go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	_ "go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	_ "go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	_ "go.yaml.in/yaml/v3"
	_ "google.golang.org/grpc"
	_ "google.golang.org/protobuf/proto"
	_ "golang.org/x/sync/errgroup"
	_ "golang.org/x/crypto/ssh"
	_ "golang.org/x/sys/unix"
	_ "golang.org/x/time/rate"
)
