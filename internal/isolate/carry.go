package isolate

import (
	"context"
	"io"
	"net"
	"sync"
	"time"
)

const (
	mostConnections = 1024 // at once, for each address; the others wait
	dialWithin      = 30 * time.Second
)

// carry serves the connections of one listener until ctx ends, and closes it.
func carry(ctx context.Context, l net.Listener, dial func(context.Context) (net.Conn, error)) {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	var open sync.WaitGroup
	defer open.Wait()
	few := make(chan struct{}, mostConnections)
	for {
		select {
		case few <- struct{}{}:
		case <-ctx.Done():
			return
		}
		inner, err := l.Accept()
		if err != nil {
			return // closed: nothing else happens to a listener on loopback that the command can reach
		}
		open.Go(func() {
			defer func() { <-few }()
			defer inner.Close()
			dialing, cancel := context.WithTimeout(ctx, dialWithin)
			outer, err := dial(dialing)
			cancel()
			if err != nil {
				return // the command sees its connection closed
			}
			defer outer.Close()
			both(ctx, inner, outer)
		})
	}
}

// both carries bytes until each side has ended, or ctx has.
func both(ctx context.Context, a, b net.Conn) {
	stop := context.AfterFunc(ctx, func() {
		a.Close()
		b.Close()
	})
	defer stop()
	var wg sync.WaitGroup
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		wg.Go(func() {
			_, err := io.Copy(way[1], way[0])
			half, ok := way[1].(interface{ CloseWrite() error })
			if err != nil || !ok || half.CloseWrite() != nil {
				a.Close()
				b.Close()
			}
		})
	}
	wg.Wait()
}
