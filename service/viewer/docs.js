// The API reference, by Swagger UI.

window.SwaggerUIBundle({ url: "openapi.json", dom_id: "#reference", deepLinking: true });
