package ssh

import (
	"context"

	"chaperone.dev/chaperone/internal/access"
)

func (c *channel) sftp(ctx context.Context) {
	c.denyUnjudged(ctx, access.Unsupported, "sftp is not served", "")
}
