package enter

import _ "embed"

//go:embed enter_arm64
var program []byte
