# Template of the Homebrew formula; fill.sh writes version and checksums into it.
class SpartaCli < Formula
  desc "Fine-tune language models on any GPU"
  homepage "@HOMEPAGE@"
  version "@VERSION@"
  license "Apache-2.0"

  on_linux do
    on_intel do
      url "@RELEASES@/v@VERSION@/sparta-cli-@VERSION@-x86_64-unknown-linux-gnu.tar.xz"
      sha256 "@SHA256_x86_64-unknown-linux-gnu@"
    end
    on_arm do
      url "@RELEASES@/v@VERSION@/sparta-cli-@VERSION@-aarch64-unknown-linux-gnu.tar.xz"
      sha256 "@SHA256_aarch64-unknown-linux-gnu@"
    end
  end

  on_macos do
    url "@RELEASES@/v@VERSION@/sparta-cli-@VERSION@-source.tar.xz"
    sha256 "@SHA256_source@"
    depends_on "rust" => :build
  end

  def install
    if OS.mac?
      system "cargo", "install", *std_cargo_args(path: "cli")
    else
      # Plugins are found beside the executable.
      libexec.install "sparta-cli", *Dir["*.so"]
      bin.install_symlink libexec/"sparta-cli"
    end
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/sparta-cli --version")
  end
end
