// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace nearbox::daemon {

// The body of the `nearbox daemon` process: one per user and sandbox.
//
//   nearbox daemon --target SANDBOX --service NAME [--config FILE]
//
// Started by connect_or_start(): reports {"ready":true}, {"busy":true} or {"error":…} as one line on
// stdout, then serves commands on its socket until its last use is gone, or TERM.
int daemon_main(int argc, char** argv);

}  // namespace nearbox::daemon
