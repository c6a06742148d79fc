package hold

import _ "embed"

//go:embed hold_arm64
var binary []byte
