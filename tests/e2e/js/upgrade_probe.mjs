// SPDX-License-Identifier: Apache-2.0
// Runs inside a sandbox: answers requests with what it saw, echoes upgraded connections.
import http from 'node:http'

const server = http.createServer((request, response) => {
  let body = ''
  request.on('data', (data) => {
    body += data
  })
  request.on('end', () => {
    response.setHeader('Content-Type', 'application/json')
    response.end(JSON.stringify({ url: request.url, body, forwarded: request.headers['x-forwarded-for'] }))
  })
})
server.on('upgrade', (request, socket) => {
  socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nready')
  socket.pipe(socket)
})
server.listen(Number(process.argv[2]), '127.0.0.1')
