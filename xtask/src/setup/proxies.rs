//! Debian's reverse proxies, below `target/tools`.
//!
//! Unpacked and not installed: Debian's packages start a service, which takes port 80 of the machine.
use std::path::PathBuf;

use anyhow::Result;
use ws_guard_testkit::tools;

use super::system;
use crate::step;

/// A Debian package with one program of interest.
pub struct Unpacked {
    package: &'static str,
    program: fn() -> PathBuf,
}

pub const NGINX: Unpacked = Unpacked { package: "nginx", program: tools::nginx };
pub const HAPROXY: Unpacked = Unpacked { package: "haproxy", program: tools::haproxy };

/// A Debian package with one file of interest below `usr`.
pub struct UnpackedFile {
    package: &'static str,
    file: &'static str,
}

/// Files to run Lua in nginx.
pub const NGINX_LUA: [UnpackedFile; 4] = [
    UnpackedFile { package: "libnginx-mod-http-ndk", file: "lib/nginx/modules/ndk_http_module.so" },
    UnpackedFile {
        package: "libnginx-mod-http-lua",
        file: "lib/nginx/modules/ngx_http_lua_module.so",
    },
    UnpackedFile { package: "lua-resty-core", file: "share/lua/5.1/resty/core.lua" },
    UnpackedFile { package: "lua-resty-lrucache", file: "share/lua/5.1/resty/lrucache.lua" },
];

impl super::Component for UnpackedFile {
    fn name(&self) -> &'static str {
        self.package
    }

    fn present(&self) -> Option<String> {
        tools::nginx_lua(self.package, self.file).exists().then(|| self.package.to_owned())
    }

    fn install(&self) -> Result<()> {
        system::apt_unpack(self.package, &tools::root().join(self.package))
    }
}

impl super::Component for Unpacked {
    fn name(&self) -> &'static str {
        self.package
    }

    fn present(&self) -> Option<String> {
        let program = (self.program)();
        // nginx writes to standard error, which is not captured here.
        let version = step::output(program.to_str()?, &["-v"])?;
        Some(version.lines().next().unwrap_or(self.package).to_owned())
    }

    fn install(&self) -> Result<()> {
        system::apt_unpack(self.package, &tools::root().join(self.package))
    }
}
