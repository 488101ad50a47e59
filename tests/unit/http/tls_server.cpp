// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/http/tls_server.h"

#include <arpa/inet.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <netinet/in.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

namespace nearbox::test {
namespace {

sockaddr* as_sockaddr(sockaddr_in& address) { return static_cast<sockaddr*>(static_cast<void*>(&address)); }

void add_extension(X509* cert, int nid, const std::string& value) {
  X509V3_CTX context;
  std::memset(&context, 0, sizeof context);
  X509V3_set_ctx(&context, cert, cert, nullptr, nullptr, 0);
  X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str());
  X509_add_ext(cert, extension, -1);
  X509_EXTENSION_free(extension);
}

X509* make_certificate(EVP_PKEY* key, const std::string& name) {
  X509* cert = X509_new();
  X509_set_version(cert, 2);
  ASN1_INTEGER_set(X509_get_serialNumber(cert), 1);
  X509_gmtime_adj(X509_getm_notBefore(cert), -3600);
  X509_gmtime_adj(X509_getm_notAfter(cert), 3600);
  X509_set_pubkey(cert, key);
  X509_NAME* subject = X509_get_subject_name(cert);
  const auto* text = static_cast<const unsigned char*>(static_cast<const void*>(name.c_str()));
  X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, text, -1, -1, 0);
  X509_set_issuer_name(cert, subject);
  add_extension(cert, NID_basic_constraints, "critical,CA:TRUE");
  add_extension(cert, NID_subject_alt_name, "DNS:" + name);
  X509_sign(cert, key, EVP_sha256());
  return cert;
}

// Takes h2 when it is offered, as a careless edge would.
int choose(SSL*, const unsigned char** out, unsigned char* size, const unsigned char* in,
           unsigned int in_size, void*) {
  static const unsigned char kWanted[] = "\2h2\10http/1.1";
  unsigned char* chosen = nullptr;
  if (SSL_select_next_proto(&chosen, size, kWanted, sizeof kWanted - 1, in, in_size) !=
      OPENSSL_NPN_NEGOTIATED) {
    return SSL_TLSEXT_ERR_NOACK;
  }
  *out = chosen;
  return SSL_TLSEXT_ERR_OK;
}

}  // namespace

struct TlsEchoServer::Tls {
  SSL_CTX* context = SSL_CTX_new(TLS_server_method());
  ~Tls() { SSL_CTX_free(context); }
};

TlsEchoServer::TlsEchoServer(const std::string& name) : tls_(new Tls) {
  EVP_PKEY* key = EVP_EC_gen("P-256");
  X509* cert = make_certificate(key, name);
  SSL_CTX_use_certificate(tls_->context, cert);
  SSL_CTX_use_PrivateKey(tls_->context, key);
  SSL_CTX_set_alpn_select_cb(tls_->context, &choose, nullptr);
  char path[] = "/tmp/nearbox-ca.XXXXXX";
  FILE* file = ::fdopen(::mkstemp(path), "w");
  PEM_write_X509(file, cert);
  std::fclose(file);
  ca_file_ = path;
  X509_free(cert);
  EVP_PKEY_free(key);
  listener_.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  if (::bind(listener_.get(), as_sockaddr(address), size) != 0 || ::listen(listener_.get(), 16) != 0 ||
      ::getsockname(listener_.get(), as_sockaddr(address), &size) != 0) {
    std::abort();
  }
  port_ = ntohs(address.sin_port);
  thread_ = std::jthread([this](const std::stop_token& stop) { run(stop); });
}

TlsEchoServer::~TlsEchoServer() {
  thread_.request_stop();
  ::shutdown(listener_.get(), SHUT_RDWR);
  if (const int fd = client_.load(); fd >= 0) ::shutdown(fd, SHUT_RDWR);
  thread_.join();
  ::unlink(ca_file_.c_str());
  delete tls_;
}

void TlsEchoServer::run(const std::stop_token& stop) {
  while (!stop.stop_requested()) {
    const base::UniqueFd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!fd) continue;
    client_.store(fd.get());
    serve(fd.get());
    client_.store(-1);
  }
}

void TlsEchoServer::serve(int fd) {
  SSL* ssl = SSL_new(tls_->context);
  SSL_set_fd(ssl, fd);
  if (SSL_accept(ssl) == 1) {
    const unsigned char* chosen = nullptr;
    unsigned int size = 0;
    SSL_get0_alpn_selected(ssl, &chosen, &size);
    saw_http11_.store(size == 8 && std::memcmp(chosen, "http/1.1", 8) == 0);
    char buffer[16 * 1024];
    for (int n = 0; (n = SSL_read(ssl, buffer, sizeof buffer)) > 0;) {
      if (SSL_write(ssl, buffer, n) != n) break;
    }
  }
  SSL_free(ssl);
}

}  // namespace nearbox::test
